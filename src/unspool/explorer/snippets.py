"""A call of the page as Python, as a command line, and as curl. Each gives the result that the page shows."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from unspool.config import OPTIONS
from unspool.explorer.calls import Call, as_text
from unspool.serving.execution.service import Service
from unspool.serving.http.security import KEY_VARIABLE
from unspool.strategy_facts import ASSISTANT

Kind: TypeAlias = Literal["next", "generate", "trace", "compare"]

_EMBEDDED = "tale"


def snippets(service: Service, call: Call, kind: Kind, address: str) -> dict[str, str]:
    """Return the three forms of a call: "Python", "CLI" and "curl".

    Args:
        service: the service.
        call: the call.
        kind: its form: the next token, a text, a trace or a comparison.
        address: of the server, such as http://127.0.0.1:8000.
    """
    text = as_text(service.lm, call.prompt)
    return {
        "Python": _python(service, call, kind),
        "CLI": "# Not possible: the added tokens, as text, are read as other tokens."
        if text is None
        else _command_lines(service, call, kind, text),
        "curl": _curl(service, call, kind, address),
    }


def _python(service: Service, call: Call, kind: Kind) -> str:
    name = service.lm.info.name
    lines = ["import unspool", "", f"lm = unspool.load({'' if name == _EMBEDDED else repr(name)})"]
    options = "".join(f", {name}={_value(name, value)}" for name, value in call.given.items())
    if kind == "next":
        lines.append(f"print(lm.next_tokens({call.prompt!r}, limit={call.limit}{options}))")
    elif kind == "compare":
        entries = ", ".join(
            f"{name!r}: {{{', '.join(f'{option!r}: {_value(option, value)}' for option, value in given.items())}}}"
            for name, given in (call.given_entries or {}).items()
        )
        lines.append(f"print(lm.compare({call.prompt!r}, {{{entries}}}{options}))")
    elif kind == "trace":
        lines.append(f"print(lm.generate({call.prompt!r}{options}, trace=True).trace)")
    else:
        lines.append(f"print(lm.generate({call.prompt!r}{options}))")
    return "\n".join(lines)


def _value(name: str, value: Any) -> str:
    return f"unspool.load({value!r})" if name == ASSISTANT else repr(value)


def _command_lines(service: Service, call: Call, kind: Kind, text: str) -> str:
    name = service.lm.info.name
    model = [] if name == _EMBEDDED else ["--model", name]
    if kind == "compare":
        entries = (call.given_entries or {}).values()
        commands = [["generate", text, *_flags({**call.given, **given}), *model] for given in entries]
    elif kind == "next":
        commands = [["next", text, "--limit", str(call.limit), *_flags(call.given), *model]]
    else:
        commands = [[kind, text, *_flags(call.given), *model]]
    return "\n".join(shlex.join(["unspool", *command]) for command in commands)


def _flags(options: Mapping[str, Any]) -> list[str]:
    words: list[str] = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        row = OPTIONS.get(name)
        if row is not None and row.cli_type == "bool":
            words.append(flag if value else f"--no-{flag[2:]}")
        elif row is not None and row.multiple and isinstance(value, list):
            words += [word for each in value for word in (flag, str(each))]
        elif row is not None and row.cli_type == "json" and not isinstance(value, str):
            words += [flag, json.dumps(value)]
        else:
            words += [flag, str(value)]
    return words


def _curl(service: Service, call: Call, kind: Kind, address: str) -> str:
    body: dict[str, Any]
    if kind == "generate":
        fields = {("assistant" if name == ASSISTANT else name): value for name, value in call.given.items()}
        route, body = "/v1/completions", {"model": service.names[0], "prompt": call.prompt, **fields}
    else:
        route = {"next": "/explore/next", "trace": "/explore/generate", "compare": "/explore/compare"}[kind]
        body = {"prompt": call.text, **({"path": call.path} if call.path else {}), "options": call.given}
        if kind == "compare":
            body["entries"] = call.given_entries
        if kind == "next":
            body["limit"] = call.limit
    data = json.dumps(body, ensure_ascii=False)
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if service.settings.api_key else ""
    return shlex.join(["curl", address + route, "-H", "Content-Type: application/json", "-d", data]) + key

"""Messages of a chat request: their check, and their form for the chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from unspool.serving.errors import ApiError

_ROLES: Final = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}


def read_messages(given: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return messages in the form that chat templates read.

    Parts of text are joined, `developer` is `system`, and the arguments of tool calls are objects. Further keys of a
    message reach the template.

    Raises:
        ApiError: 400, with the path of the field at fault.
    """
    if not given:
        raise ApiError(400, "`messages` must have at least one message", param="messages", code="invalid_prompt")
    return [_message(dict(message), f"messages.{index}") for index, message in enumerate(given)]


def _message(message: dict[str, Any], path: str) -> dict[str, Any]:
    role = message.get("role")
    if role not in _ROLES:
        raise ApiError(400, f"`{path}.role` must be one of {', '.join(_ROLES)}, got {role!r}", param=f"{path}.role")
    message["role"] = _ROLES[role]
    if message.get("reasoning") is not None and message.get("reasoning_content") is None:
        message["reasoning_content"] = message.pop("reasoning")
    calls = message.get("tool_calls") or ()
    if calls:
        message["tool_calls"] = [_call(call, f"{path}.tool_calls.{at}") for at, call in enumerate(calls)]
    elif "tool_calls" in message:
        del message["tool_calls"]
    content = message.get("content")
    if isinstance(content, list):
        message["content"] = "".join(_part(part, f"{path}.content.{at}") for at, part in enumerate(content))
    elif content is None and calls:
        message["content"] = ""
    elif not isinstance(content, str):
        raise ApiError(400, f"`{path}.content` must be a text or a list of parts", param=f"{path}.content")
    return message


def _part(part: Any, path: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind in ("text", "input_text", "output_text") and isinstance(part.get("text"), str):
        return str(part["text"])
    if kind == "refusal" and isinstance(part.get("refusal"), str):
        return str(part["refusal"])
    raise ApiError(
        400,
        f"`{path}` must be a part of type text; this server reads text only",
        param=path,
        code="unsupported_content",
    )


def _call(call: Any, path: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ApiError(400, f"`{path}` must be a function call with a name", param=path)
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise ApiError(
                400, f"`{path}.function.arguments` must be JSON", param=f"{path}.function.arguments"
            ) from None
    return {**call, "function": {**function, "arguments": arguments}}

"""`unspool serve`: the OpenAI-compatible server.

Owns: the flags, and the lines printed at the start. Does not know: routes and fields (unspool.serving).
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import fields
from pathlib import Path
from socket import socket
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_type_hints

import typer

from unspool.cli.endings import guarded, with_parameters
from unspool.cli.options import with_model
from unspool.cli.sources import ModelChoice
from unspool.errors import MissingExtra
from unspool.serving.http.listening import bound, url_host
from unspool.serving.response_template import set_response_template
from unspool.serving.settings import ModelSettings, Settings, read_settings

if TYPE_CHECKING:
    from unspool.model import LanguageModel

_METAVARS: Final = {
    "host": "ADDRESS",
    "served_model_name": "NAME",
    "no_explore": None,
    "any_model": None,
    "api_key": "KEY",
    "allowed_host": "HOST",
    "cors_origin": "ORIGIN",
    "unknown_fields": "error|warn",
    "assistant_model": "NAME|FOLDER",
    "response_template": "FILE|JSON",
}

_CLASSES: Final = (ModelSettings, Settings)

_PACKAGES: Final = ("fastapi", "uvicorn", "prometheus_client")


def with_settings(command: Callable[..., None], *, hidden: Collection[str] = ()) -> Callable[..., None]:
    """Return the command with one flag per setting; it receives the given ones as a mapping, `given`.

    Args:
        hidden: settings that the help page of the command omits.
    """
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "given"]
    table = [(each, get_type_hints(kind)[each.name]) for kind in _CLASSES for each in fields(kind)]
    flags = [
        inspect.Parameter(
            each.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _flag_type(hint),
                typer.Option(
                    f"--{each.name.replace('_', '-')}",
                    metavar=_METAVARS.get(each.name, "NUMBER"),
                    help=_help(each.metadata["help"], each.default),
                    rich_help_panel=each.metadata["panel"],
                    show_default=False,
                    hidden=each.name in hidden,
                ),
            ],
        )
        for each, hint in table
    ]

    def call(**given: Any) -> None:
        found = {each.name: value for each, _ in table if (value := given.pop(each.name)) not in (None, [])}
        command(**given, given=found)

    return with_parameters(call, command, [*own, *flags])


def _flag_type(hint: Any) -> Any:
    if hint == tuple[str, ...]:
        return list[str] | None
    return {"Literal": Literal["error", "warn"] | None}.get(getattr(hint, "__name__", ""), hint | None)


def _help(text: str, default: Any) -> str:
    shown = default not in (None, (), False)
    return f"{text} Default: {default:g}." if shown and isinstance(default, float) else (
        f"{text} Default: {default}." if shown else text
    )  # fmt: skip


@guarded
@with_model
@with_settings
def serve(
    *,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Read the values of flags from a TOML file; flags override it."),
    ] = None,
    given: dict[str, Any],
    choice: ModelChoice,
) -> None:
    """Serve a model over HTTP with OpenAI's API: completions and chat, with every decoding strategy.

    Programs for OpenAI's API work with it. docs/serving.md lists routes and fields. Ctrl-C or SIGTERM ends the server
    after the running requests.
    """
    run_server(choice, config, given, _greet)


def run_server(
    choice: ModelChoice,
    config: Path | None,
    given: dict[str, Any],
    ready: Callable[[LanguageModel, Settings, int], None],
) -> None:
    """Load the models and serve until a signal.

    Args:
        choice: the model.
        config: TOML file of settings; None for none.
        given: settings that override it.
        ready: called with the model, the settings and the port when requests are accepted.

    Raises:
        OptionError: if a setting is wrong, or if the server cannot listen at its host and port.
    """
    _check_packages()
    settings: Settings
    models: ModelSettings
    settings, models, choice = read_settings(config, {**choice.given(), **given}, Settings, ModelSettings, ModelChoice)
    with bound(settings.host, settings.port) as sockets:
        _run(sockets, choice, settings, models, ready)


def _run(
    sockets: Sequence[socket],
    choice: ModelChoice,
    settings: Settings,
    models: ModelSettings,
    ready: Callable[[LanguageModel, Settings, int], None],
) -> None:
    from unspool.serving.app import create_app
    from unspool.serving.run import serve as run

    lm = choice.load(**models.limits())
    if models.response_template is not None:
        set_response_template(lm.tokenizer, models.response_template)
    assistants = {name: choice.load_another(name) for name in models.assistant_model}
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    app = create_app(lm, settings, assistants=assistants)
    if not settings.no_explore:
        from unspool.explorer import add_explorer

        add_explorer(app)
    run(app, sockets, lambda port: ready(lm, settings, port))


def _check_packages() -> None:
    from importlib.util import find_spec

    for package in _PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra("serve", package, "the server answers HTTP requests")


def address_of(settings: Settings, port: int) -> str:
    """Return the address of the server for programs on this machine."""
    local = {"0.0.0.0": "127.0.0.1", "::": "::1"}
    return f"http://{url_host(local.get(settings.host, settings.host))}:{port}"


def _greet(lm: LanguageModel, settings: Settings, port: int) -> None:
    """Print the address, and one line to try for curl and one for Python."""
    from unspool.serving.http.security import KEY_VARIABLE

    name = (settings.served_model_name or (lm.info.name,))[0]
    address = address_of(settings, port)
    key = f' -H "Authorization: Bearer ${KEY_VARIABLE}"' if settings.api_key else ""
    of_python = f'os.environ["{KEY_VARIABLE}"]' if settings.api_key else '"none"'
    imports = f"{'import os; ' if settings.api_key else ''}from openai import OpenAI"
    body = f'{{"model": "{name}", "prompt": "Once upon a time", "max_tokens": 40}}'
    asked = f'model="{name}", prompt="Once upon a time"'
    call = f'OpenAI(base_url="{address}/v1", api_key={of_python}).completions.create({asked})'
    lines = (
        f"Serving {name} at {address}/v1",
        *(() if settings.no_explore else (f"Explorer at {address}/",)),
        "",
        f"  curl {address}/v1/completions -H 'Content-Type: application/json'{key} -d '{body}'",
        f"  python -c '{imports}; print({call}.choices[0].text)'",
        "",
        "Ctrl-C stops the server.",
    )
    typer.echo("\n".join(lines), err=True)

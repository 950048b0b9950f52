"""`unspool explore`: the server of `unspool serve`, with the web explorer opened in a browser.

Owns: the positional model, the draft model of the embedded model, and the browser. Does not know: routes and pages.
"""

from __future__ import annotations

import webbrowser
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unspool.cli.endings import guarded
from unspool.cli.options import with_model
from unspool.cli.serve import address_of, run_server, with_settings
from unspool.cli.sources import ModelChoice
from unspool.errors import OptionError

if TYPE_CHECKING:
    from unspool.serving.settings import Settings

_DRAFT = "tale-draft"


@guarded
@with_model
@partial(with_settings, hidden=("no_explore",))
def explore(
    name: Annotated[
        str | None,
        typer.Argument(metavar="MODEL", help="Model to explore, as in --model. By default the embedded one."),
    ] = None,
    *,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in a browser, or only print its address.")
    ] = True,
    given: dict[str, Any],
    choice: ModelChoice,
) -> None:
    """Open a web page that shows decoding live: next tokens, beams, comparisons, speculation and structure.

    The page and its numbers come from this computer only. docs/explorer.md shows the views. Ctrl-C ends the server.
    """
    if name is not None and choice.model is not None:
        raise OptionError("model", choice.model, "is given twice", "leave out --model or the argument")
    if given.get("no_explore"):
        raise OptionError("no_explore", True, "turns off the page that this command opens", "use unspool serve")
    chosen = choice if name is None else replace(choice, model=name)
    if chosen.model in (None, "tale"):
        given.setdefault("assistant_model", (_DRAFT,))
    run_server(chosen, None, given, lambda lm, settings, port: _open(settings, port, browser))


def _open(settings: Settings, port: int, browser: bool) -> None:
    """Print the address, and open it."""
    address = f"{address_of(settings, port)}/"
    typer.echo(f"Explorer at {address}\nCtrl-C stops the server.", err=True)
    if browser and not webbrowser.open(address):
        typer.echo("No browser was found; open the address yourself.", err=True)

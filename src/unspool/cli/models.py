"""`unspool models`: lists the models that can be loaded without a network.

Owns: the table. Does not know: the folders of models (unspool.cli.inventory).
"""

from __future__ import annotations

import json
import sys

import typer
from rich.console import Console
from rich.table import Table

from unspool.cli.endings import guarded
from unspool.cli.inventory import Model, cached_models, embedded_models, installed_models
from unspool.cli.options import JsonFlag

_PIPE_WIDTH = 400


@guarded
def models(*, as_json: JsonFlag = False) -> None:
    """List the models on this machine: embedded, in installed packages, and in the local Hugging Face cache."""
    found = [*embedded_models(), *installed_models(), *cached_models()]
    if as_json:
        typer.echo(json.dumps([model.to_dict() for model in found], ensure_ascii=False, indent=2))
        return
    # In a pipe, names must not be cut to a width.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else _PIPE_WIDTH)
    console.print(table(found))
    if not any(model.place == "embedded" for model in found):
        typer.echo("This copy lacks the embedded model; create it with tools/train_tale.py.", err=True)


def table(found: list[Model]) -> Table:
    """Return the table, one line per model."""
    lines = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    lines.add_column("MODEL", overflow="fold")
    lines.add_column("WHERE")
    lines.add_column("PARAMETERS", justify="right", no_wrap=True)
    lines.add_column("ON DISK", justify="right", no_wrap=True)
    lines.add_column("BITS PER BYTE", justify="right", no_wrap=True)
    for model in found:
        bits = "" if model.bits_per_byte is None else f"{model.bits_per_byte:.2f}"
        lines.add_row(model.title, model.place, _count(model.parameters), _size(model.size), bits)
    return lines


def _count(number: int | None) -> str:
    if number is None:
        return ""
    for unit, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            return f"{number / unit:.1f}{letter}"
    return str(number)


def _size(number: int) -> str:
    for unit, letters in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {letters}"
    return f"{number} B"

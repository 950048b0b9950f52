"""Renderings of the option table: help text, Markdown page and JSON schema."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from unspool.config.foreign import NO_EFFECT, REFUSED
from unspool.config.generation import OPTIONS
from unspool.config.strategies import STRATEGIES
from unspool.errors import OptionError
from unspool.options.option import Option


def help_for(name: str) -> str:
    """Return the description of an option: type, help, range, default, off value and readers, one per line.

    Raises:
        OptionError: if the option is unknown.
    """
    if name not in OPTIONS:
        raise OptionError("name", name, "must be the name of an option", "unspool.config.OPTIONS lists them all")
    row = OPTIONS[name]
    lines = [f"{name}: {row.type}", row.help, f"Range: {row.range}. Default: {row.shown_default!r}. Off: {_off(row)}."]
    lines += [f"Read by: {_readers(row)}."]
    if row.partners:
        lines.append(f"Read only together with {' or '.join(row.partners)}.")
    return "\n".join(lines)


def option_table_markdown() -> str:
    """Return the option table as a Markdown page, one section per group."""
    parts = ["# Options", "", _INTRODUCTION]
    for group, rows in groupby(OPTIONS.values(), key=lambda row: row.group):
        parts += ["", f"## {group}", "", *_HEAD, *(_line(row) for row in rows)]
    parts += ["", "## Accepted, without effect on the tokens", "", "| Attribute | Why |", "|---|---|"]
    parts += [f"| `{name}` | {why} |" for name, why in NO_EFFECT.items()]
    parts += ["", "## Refused", "", "| Attribute | Why | Instead |", "|---|---|---|"]
    parts += [f"| `{name}` | {_cell(one.reason)} | {_cell(one.remedy)} |" for name, one in REFUSED.items()]
    return "\n".join(parts) + "\n"


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (2020-12) of an object of options, for servers and other programs."""
    properties = {
        name: {"description": row.help, "default": row.plain(row.shown_default), "anyOf": [row.kind.schema, _NULL]}
        for name, row in OPTIONS.items()
        if row.door != "drop_in"
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "GenerationConfig",
        "type": "object",
        "properties": properties,
        "additionalProperties": False,
    }


_NULL = {"type": "null"}

_INTRODUCTION = """Every option, in Python (`lm.generate(prompt, top_p=0.9)`) and on the command line (`--top-p 0.9`).
`None` turns an option off and overrides the model's stored config. An option that is left out takes the model's stored
value, then the default. A requested option that the strategy does not read is an error in the
native API. transformers-style calls ignore it with a warning, unless it is `num_return_sequences` or `strict=True`.
[configs.md](configs.md#off-unset-and-default) explains off, unset and default. This page is generated:
`python tools/write_option_docs.py`."""

_HEAD = ("| Option | Type | Allowed | Default | Off | Read by | Meaning |", "|---|---|---|---|---|---|---|")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _line(row: Option) -> str:
    meaning = row.help
    if row.partners:
        meaning += f" Read only with {' or '.join(f'`{partner}`' for partner in row.partners)}."
    cells = [
        f"`{row.name}`",
        f"`{row.type}`",
        row.range.removeprefix("must be "),
        f"`{row.shown_default!r}`",
        f"`{_off(row)}`",
    ]
    return "| " + " | ".join(_cell(cell) for cell in [*cells, _readers(row), meaning]) + " |"


def _off(row: Option) -> str:
    if row.default is None:
        return "None" if row.off is None else f"None, {row.off!r}"
    return repr(row.off)


def _readers(row: Option) -> str:
    prefix = {"both": "", "native": "native API only: ", "drop_in": "drop-in only: "}[row.door]
    names = "all" if row.read_by == "all" else ", ".join(name for name in STRATEGIES if name in row.read_by)
    return prefix + names

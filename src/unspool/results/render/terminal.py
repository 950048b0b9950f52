"""Renderer of results for a terminal, with rich.

Colors only repeat the signs, so the chart is complete without colors.
"""

from __future__ import annotations

from typing import Final

from rich.cells import cell_len
from rich.console import Group
from rich.table import Table
from rich.text import Text

from unspool.results.drawing import draws
from unspool.results.generation import Generation
from unspool.results.next_tokens import NextToken, NextTokens
from unspool.results.render.marks import (
    bar,
    closing,
    greatest,
    heading,
    percent,
    processors,
    summary,
    verdict,
    visible,
)

_COMMON: Final = "bright_cyan"
_GAINED: Final = "bright_green"
_LOST: Final = "dim"
_NARROWEST, _WIDEST = 8, 48


@draws(NextTokens, "terminal")
def next_tokens_terminal(tokens: NextTokens, *, width: int) -> Group:
    """Return the bar chart of a distribution, at most `width` cells wide unless token names need more."""
    rows = [(entry, visible(entry.text), verdict(entry)) for entry in tokens]
    fixed = max(cell_len(name) for _, name, _ in rows) + max(cell_len(end) for _, _, end in rows)
    bar_width = min(_WIDEST, max(_NARROWEST, width - fixed - len("rank") - len("100.00%") - 4 * 2))
    longest = greatest(tokens)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("rank", justify="right", style="dim")
    table.add_column("token", no_wrap=True)
    table.add_column("model", justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("drawn", no_wrap=True)
    for entry, name, end in rows:
        table.add_row(
            str(entry.rank),
            Text(name, style="bold" if entry.kept else "dim strike"),
            Text(percent(entry.probability), style="" if entry.kept else "dim"),
            _bar(entry, longest, bar_width),
            Text(end, style=_COMMON if entry.kept else "dim"),
        )
    return Group(Text(heading(tokens), style="bold"), Text(), table, Text(), _legend(), _facts(tokens))


@draws(Generation, "terminal")
def generation_terminal(generation: Generation) -> Text:
    """Return the prompt and each output with a line of facts. The prompt is dim unless `echo` is on."""
    text = Text()
    for completion in generation.completions:
        if generation.prompt:
            text.append(generation.prompt, style="" if generation.echo else "dim")
        text.append(completion.text, style="bold")
        text.append("\n" + closing(generation, completion), style="dim")
        text.append("\n\n")
    text.rstrip()
    return text


def _bar(entry: NextToken, longest: float, width: int) -> Text:
    parts = bar(entry, greatest=longest, width=width)
    return Text.assemble(
        ("█" * parts.common, _COMMON), ("▓" * parts.gained, _GAINED), ("░" * parts.lost, _LOST), no_wrap=True
    )


def _legend() -> Text:
    return Text.assemble(
        ("█", _COMMON), (" kept  ", "dim"), ("▓", _GAINED), (" gained  ", "dim"), ("░", _LOST), (" lost", "dim")
    )


def _facts(tokens: NextTokens) -> Text:
    return Text(f"{summary(tokens)}; {processors(tokens)}", style="dim")

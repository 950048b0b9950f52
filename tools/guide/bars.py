"""Horizontal bars: probabilities of the next token before and after the processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from tools.guide.svg import Picture
from tools.guide.tokens import shorten
from unspool.results.next_tokens import NextTokens

LINE: Final = 19
_BAR: Final = 13


class Bar(NamedTuple):
    """One bar. text: the token. before: its length, gray; after: the length of a second bar over it, None for none.

    note: words behind the bar. kind: the class of the second bar, or of the first if there is no second.
    """

    text: str
    before: float
    after: float | None = None
    note: str = ""
    kind: str = "blue"


def bars_of(found: NextTokens, *, limit: int, cutter: str = "") -> list[Bar]:
    """Return a bar per token in the model's order: gray before the processors, blue after, hollow if it was cut.

    cutter: named for tokens that no processor cut, but the step before the processors.
    """
    entries = sorted(found.entries, key=lambda entry: entry.rank)[:limit]
    return [
        Bar(
            entry.text,
            entry.probability,
            entry.processed_probability if entry.kept else None,
            f"{100 * entry.processed_probability:.1f}%" if entry.kept else f"✗ {entry.cut_by or cutter}",
            "blue" if entry.kept else "red hollow",
        )
        for entry in entries
    ]


def draw_bars(
    picture: Picture, bars: Sequence[Bar], *, x: float, y: float, width: float, label: float = 92, full: float = 0.0
) -> float:
    """Draw the bars below each other. Returns the y below the last one.

    Args:
        label: width of the column of tokens; 60 pixels on the right remain for notes.
        full: the value that fills the width; 0 for the greatest.
    """
    full = full or max(max(bar.before, bar.after or 0.0) for bar in bars)
    room = width - label - 62
    for bar in bars:
        picture.text(x + label - 8, y + 11, shorten(bar.text), "token end")
        if bar.after is None:
            picture.rect(x + label, y, room * bar.before / full, _BAR, bar.kind)
        else:
            picture.rect(x + label, y, room * bar.before / full, _BAR, "gray")
            picture.rect(x + label, y + 3, room * bar.after / full, _BAR - 6, bar.kind)
        length = room * max(bar.before, bar.after or 0.0) / full
        inside = "hollow" in bar.kind and length > 140
        picture.text(x + label + (6 if inside else length + 6), y + 11, bar.note, "small faint")
        y += LINE
    return y

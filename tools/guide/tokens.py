"""Rows of tokens as boxes, with line breaks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from tools.guide.svg import CHIP, Picture, chip_width
from unspool.results.render.marks import visible

_GAP: Final = 4
_LINE: Final = CHIP + 6


class Chip(NamedTuple):
    """A token with the class of its box. mark: a sign before its text, such as "✓"."""

    text: str
    kind: str = "gray"
    mark: str = ""
    bold: bool = False

    @property
    def words(self) -> str:
        shown = shorten(self.text)
        return f"{self.mark} {shown}" if self.mark else shown


def shorten(text: str, limit: int = 14) -> str:
    """Return a token's text with visible white space, at most `limit` characters long."""
    shown = visible(text)
    return shown if len(shown) <= limit else f"{shown[: limit - 1]}…"


def flow(picture: Picture, chips: Iterable[Chip], *, x: float, y: float, right: float) -> float:
    """Draw the boxes from (x, y) on, with a new line before `right`. Returns the y below the last line."""
    place = x
    for chip in chips:
        width = chip_width(chip.words)
        if place > x and place + width > right:
            place, y = x, y + _LINE
        picture.chip(place, y, chip.words, chip.kind, bold=chip.bold)
        place += width + _GAP
    return y + _LINE

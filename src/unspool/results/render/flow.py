"""Pieces of text set one after the other, in lines no wider than the terminal.

Does not know: what the pieces say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.text import Text

_NARROWEST: Final = 10


def flow(pieces: Sequence[Text], *, first: str | Text, rest: str, width: int, gap: str = "  ") -> list[Text]:
    """Return the pieces in lines; none is broken, but one that is wider than a line is cut, with an ellipsis.

    Args:
        pieces: in order.
        first, rest: what the first line and the others begin with; dim where no text with styles is given.
        width: cells of a line. Where a beginning leaves fewer than 10 of them, the line is wider.
        gap: between two pieces of a line; the blanks at its end are left out at the end of a line.
    """
    line = Text.assemble((first, "dim")) if isinstance(first, str) else first.copy()
    lines, start = [line], line.cell_len
    for index, piece in enumerate(pieces):
        after = 0 if index == len(pieces) - 1 else cell_len(gap.rstrip())
        empty = line.cell_len == start
        if not empty and line.cell_len + cell_len(gap) + piece.cell_len + after > width:
            line.append(gap.rstrip(), style="dim")
            line, start, empty = Text.assemble((rest, "dim")), cell_len(rest), True
            lines.append(line)
        if not empty:
            line.append(gap, style="dim")
        cut = piece.copy()
        cut.truncate(max(_NARROWEST, width - line.cell_len - after), overflow="ellipsis")
        line.append_text(cut)
    return lines


def joined(lines: Sequence[Text]) -> Text:
    """Return the lines as one text, which a terminal that is too narrow does not wrap at its blanks."""
    return Text("\n", no_wrap=True, overflow="ignore").join(lines)

"""Line breaking: fits pieces of text into lines of the terminal's width.

Does not know: the meaning of the pieces.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.cells import cell_len
from rich.text import Text

_NARROWEST: Final = 10


def flow(pieces: Sequence[Text], *, first: str | Text, rest: str, width: int, gap: str = "  ") -> list[Text]:
    """Return the pieces in lines. Pieces are never broken; a piece wider than a line is cut, with an ellipsis.

    Args:
        pieces: pieces of text, in order.
        first, rest: start of the first line, and of all other lines. A plain string is drawn dim.
        width: width of a line in cells. A line is wider if its start leaves fewer than 10 cells.
        gap: separator of two pieces. At the end of a line, its trailing blanks are left out.
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
    """Return the lines as one text that rich does not wrap."""
    return Text("\n", no_wrap=True, overflow="ignore").join(lines)

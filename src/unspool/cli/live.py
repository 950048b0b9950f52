"""A tail behind the text in a terminal: dim, rewritten in place, and gone without trace.

Owns: where the cursor stands, in cells, and the escapes that draw and erase. Does not know: what the text says.

    text that stays|tail          the cursor rests at the bar, where the text goes on
    more of the tail
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TextIO

from rich.cells import cell_len

_ERASE: Final = "\x1b[J"
_SAVE, _RESTORE = "\x1b7", "\x1b8"
_DOWN: Final = "\x1bD"  # one line down in the same column; the screen scrolls at its end
_DIM, _PLAIN = "\x1b[2m", "\x1b[0m"
_NO_WRAP, _WRAP = "\x1b[?7l", "\x1b[?7h"
_TAB: Final = 8


class LiveTail:
    """Shows text in a terminal with a tail behind it; the text begins in the first column.

    Args:
        write: takes what the terminal is to be sent, and sends it at once.
        size: returns the terminal's columns and lines.
    """

    def __init__(self, write: Callable[[str], None], size: Callable[[], os.terminal_size]) -> None:
        self._write = write
        self._size = size
        self._tail = ""
        self._column = 0
        self._forced = False

    def show(self, text: str, tail: str | None) -> None:
        """Show more text, and the tail behind it.

        Args:
            text: may be "".
            tail: None leaves it as it is, "" takes it away.
        """
        before, wanted = self._tail, self._tail if tail is None else tail
        if not text and wanted == before:
            return
        firm = self.passed(text)
        try:
            self._write((_ERASE if before else "") + firm + (self._draw(wanted) if wanted else ""))
        finally:
            # An interrupt in the middle of the writing leaves it in the buffer, to go out with what is written next.
            self._tail = wanted

    def passed(self, text: str) -> str:
        """Take note of text that is shown where no tail stands; returns what to write of it."""
        if self._forced and text:
            text, self._forced = text.removeprefix("\n"), False
        self._column = column_after(text, self._column, self._size().columns)
        return text

    def end(self) -> None:
        """Take the tail away, even one whose drawing was cut off: a terminal discards what is on its way at Ctrl-C."""
        if self._tail:
            self._write(_PLAIN + _WRAP + _RESTORE + _ERASE)
            self._tail = ""

    def _draw(self, tail: str) -> str:
        """Return what draws the tail and leaves the cursor where it is.

        Rows are broken here, room for them is made first and wrapping is off: nothing may scroll while the cursor's
        place is saved, even where a terminal gives a character more cells than we do.
        """
        columns, lines = self._size()
        forced = ""
        if self._column == columns:  # the terminal waits to wrap, and would erase the row's last cell
            forced, self._column, self._forced = " \b", 0, True
        rows = fold(tail.removeprefix("\n") if self._forced else tail, self._column, columns)[:lines]
        down = len(rows) - 1
        room = f"{_DOWN * down}\x1b[{down}A" if down else ""
        drawn = "\r\n".join(rows)
        return f"{forced}{room}{_SAVE}{_NO_WRAP}{_DIM}{drawn}{_PLAIN}{_WRAP}{_RESTORE}"


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Return columns and lines of the terminal that the stream writes to; 80 by 24 where it does not say."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return os.terminal_size((80, 24))
    return size if size.columns and size.lines else os.terminal_size((80, 24))


def column_after(text: str, column: int, columns: int) -> int:
    """Return the column behind text that begins in `column`; `columns` where the row is full and not yet wrapped."""
    if "\n" in text:
        text, column = text[text.rfind("\n") + 1 :], 0
    for char in text:
        if char == "\t":
            column = min(column // _TAB * _TAB + _TAB, columns - 1)
        else:
            cells = cell_len(char)
            column = column + cells if column + cells <= columns else cells
    return column


def fold(text: str, column: int, columns: int) -> list[str]:
    """Return the rows that text takes, the first of which begins in `column`; tabs become spaces.

    Marks at the beginning of a row are left out: they would join a character that is not of this text.
    """
    rows = [""]
    for char in text:
        if char == "\n":
            rows.append("")
            column = 0
            continue
        shown = " " * min(_TAB - column % _TAB, columns - column) if char == "\t" else char
        cells = cell_len(shown)
        if not cells and not rows[-1]:
            continue
        if column + cells > columns:
            rows.append("")
            column = 0
        rows[-1] += shown
        column += cells
    return rows

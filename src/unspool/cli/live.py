"""LiveTail: a tentative tail after the text in a terminal, drawn dim, rewritten in place and erased without trace.

Owns: the column of the cursor, in cells, and the escape sequences that draw and erase. Does not know: the meaning of
the text.

    final text|tail               the cursor stays at the bar, the start of the next text
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
    """Shows text in a terminal with a tail after it; the text starts in the first column.

    Args:
        write: sends text to the terminal at once.
        size: returns the terminal's size in columns and lines.
    """

    def __init__(self, write: Callable[[str], None], size: Callable[[], os.terminal_size]) -> None:
        self._write = write
        self._size = size
        self._tail = ""
        self._column = 0
        self._forced = False

    def show(self, text: str, tail: str | None) -> None:
        """Show more text, and the tail after it.

        Args:
            text: new text; can be "".
            tail: the new tail; None keeps the current tail, "" removes it.
        """
        before, wanted = self._tail, self._tail if tail is None else tail
        if not text and wanted == before:
            return
        firm = self.passed(text)
        try:
            self._write((_ERASE if before else "") + firm + (self._draw(wanted) if wanted else ""))
        finally:
            # After an interrupt during the write, the tail is in the buffer and still appears with the next write.
            self._tail = wanted

    def passed(self, text: str) -> str:
        """Update the cursor column for text shown without a tail, and return the part of the text to write."""
        if self._forced and text:
            text, self._forced = text.removeprefix("\n"), False
        self._column = column_after(text, self._column, self._size().columns)
        return text

    def end(self) -> None:
        """Remove the tail, also after Ctrl-C: the terminal then discards pending output, so it can be half drawn."""
        if self._tail:
            self._write(_PLAIN + _WRAP + _RESTORE + _ERASE)
            self._tail = ""

    def _draw(self, tail: str) -> str:
        """Return the escape sequence that draws the tail and restores the cursor.

        The screen must not scroll between saving and restoring the cursor, even if the terminal counts more cells per
        character. So this method breaks rows itself, makes room for them first, and turns wrapping off.
        """
        columns, lines = self._size()
        forced = ""
        if self._column == columns:  # a pending wrap: erasing would delete the row's last cell
            forced, self._column, self._forced = " \b", 0, True
        rows = fold(tail.removeprefix("\n") if self._forced else tail, self._column, columns)[:lines]
        down = len(rows) - 1
        room = f"{_DOWN * down}\x1b[{down}A" if down else ""
        drawn = "\r\n".join(rows)
        return f"{forced}{room}{_SAVE}{_NO_WRAP}{_DIM}{drawn}{_PLAIN}{_WRAP}{_RESTORE}"


def terminal_size(stream: TextIO) -> os.terminal_size:
    """Return the columns and lines of the stream's terminal; 80 by 24 if they are unknown."""
    try:
        size = os.get_terminal_size(stream.fileno())
    except (OSError, ValueError):
        return os.terminal_size((80, 24))
    return size if size.columns and size.lines else os.terminal_size((80, 24))


def column_after(text: str, column: int, columns: int) -> int:
    """Return the column after text that starts in `column`; `columns` if the row is full and not yet wrapped."""
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
    """Return the rows of a text that starts in `column`; tabs become spaces.

    Combining marks at the start of a row are left out, because they would modify a character outside this text.
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

"""A terminal for tests: what stands where after a program has written, what scrolled away, and what of it is dim."""

from __future__ import annotations

import copy
import unicodedata
from typing import Any

import pyte
from wcwidth import wcwidth

_DIM, _ITALIC = 2, 3


class Terminal(pyte.Screen):
    """pyte's, made to wrap and erase as xterm does. Dim text is kept as italic, which pyte knows.

    Behind a full row the cursor waits in a column of its own, `columns`, for the next character to wrap; all else but
    drawing takes it back onto the last cell.
    """

    def __init__(self, columns: int, lines: int) -> None:
        self.gone: list[tuple[str, str]] = []
        super().__init__(columns, lines)
        self._stream = pyte.Stream(self)

    def write(self, text: str) -> None:
        """Take in what a program writes; the system turns its newlines into two characters."""
        self._stream.feed(text.replace("\n", "\r\n"))

    def rows(self) -> list[tuple[str, str]]:
        """Return the plain and the dim text of each row, scrolled ones first, without empty ones at the end."""
        rows = self.gone + [self._row(y) for y in range(self.lines)]
        while rows and rows[-1] == ("", ""):
            rows.pop()
        return rows

    def plain(self) -> list[str]:
        """Return the plain text of each row."""
        texts = [plain for plain, _ in self.rows()]
        while texts and not texts[-1]:
            texts.pop()
        return texts

    def dim(self) -> str:
        """Return the dim text, without spaces."""
        return "".join(dim for _, dim in self.rows()).replace(" ", "")

    def place(self) -> tuple[int, int]:
        """Return row and column of the cursor; the next row's first column where a wrap is due."""
        row = len(self.gone) + self.cursor.y
        return (row + 1, 0) if self.cursor.x == self.columns else (row, self.cursor.x)

    def _row(self, y: int) -> tuple[str, str]:
        if y not in self.buffer:
            return "", ""
        cells = [self.buffer[y][x] for x in range(self.columns)]
        plain = "".join(cell.data for cell in cells if not cell.italics)
        return plain.rstrip(), "".join(cell.data for cell in cells if cell.italics)

    def _leave_the_edge(self) -> None:
        self.cursor.x = min(self.cursor.x, self.columns - 1)

    def draw(self, data: str) -> None:
        for char in data:
            if wcwidth(char) == 0:
                self._combine(char)
                continue
            if self.cursor.x + wcwidth(char) > self.columns and self.columns > 1:
                self.cursor.x = self.columns
            super().draw(char)

    def _combine(self, mark: str) -> None:
        """Let a mark join the character before the cursor; one in the first column joins none."""
        row, x = self.buffer[self.cursor.y], self.cursor.x - 1
        while x > 0 and not row[x].data:  # the second cell of a wide character
            x -= 1
        if x >= 0:
            row[x] = row[x]._replace(data=unicodedata.normalize("NFC", row[x].data + mark))

    def index(self) -> None:
        if self.cursor.y == self.lines - 1:
            self.gone.append(self._row(0))
        super().index()

    def select_graphic_rendition(self, *attributes: int, **private: Any) -> None:
        super().select_graphic_rendition(*(_ITALIC if each == _DIM else each for each in attributes), **private)

    def erase_in_display(self, how: int = 0, *rest: Any, **private: Any) -> None:
        self._leave_the_edge()
        super().erase_in_display(how, *rest, **private)

    def cursor_up(self, count: int | None = None) -> None:
        self._leave_the_edge()
        super().cursor_up(count)

    def save_cursor(self) -> None:
        self._leave_the_edge()
        self.savepoints.clear()  # terminals keep one place
        super().save_cursor()

    def restore_cursor(self) -> None:
        kept = [point._replace(cursor=copy.copy(point.cursor)) for point in self.savepoints]
        super().restore_cursor()
        self.savepoints = kept

    def backspace(self) -> None:
        self._leave_the_edge()
        super().backspace()

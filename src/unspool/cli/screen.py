"""Screen: writes text to standard output and remarks to standard error, with dim parts in a terminal.

Owns: both streams while a command runs. Does not know: models.
"""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

from unspool.cli.live import LiveTail, terminal_size

SEPARATOR = "---\n"

# Control characters from a model could move the cursor of a terminal. Pipes get the unchanged text.
_UNSAFE = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\t\n"}


class Screen:
    """Shows the outputs of one prompt as they stream in.

    Args:
        prompt: shown dim before each output in a terminal.
        echo: True to write the prompt to a pipe as well.
        output, errors: streams for text and for remarks; None for the streams of this process.
    """

    def __init__(self, *, prompt: str, echo: bool, output: TextIO | None = None, errors: TextIO | None = None) -> None:
        self._output, self._errors = output or sys.stdout, errors or sys.stderr
        self._prompt = prompt
        self._shows_prompt = echo or self._output.isatty()
        self._at_line_start = True
        self._live: LiveTail | None = None
        if self._output.isatty() and _has_styles(self._output):
            self._live = LiveTail(lambda text: _write(self._output, text), lambda: terminal_size(self._output))

    @property
    def shows_tails(self) -> bool:
        """True if tentative tails can be shown, which needs a terminal with styles."""
        return self._live is not None

    def prompt(self) -> None:
        """Show the prompt in a terminal, or if `echo` is on."""
        if self._shows_prompt:
            self._put(self._output, self._prompt, dim=True)

    def text(self, text: str, *, tail: str | None = None) -> None:
        """Show a piece of text at once, and after it, dim, a tentative tail.

        Args:
            text: the new text.
            tail: the new tail; None keeps the current tail, "" removes it. Ignored unless `shows_tails`.
        """
        if self._live is None:
            self._put(self._output, text, dim=False)
            return
        self._live.show(safe(text), None if tail is None else safe(tail))
        if text:
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Remove the tail, and go to a new line unless the cursor is at the start of a line."""
        if self._live is not None:
            self._live.end()
        if not self._at_line_start:
            self.text("\n")

    def separate(self) -> None:
        """Separate two outputs, and show the prompt of the second."""
        self.end_line()
        self._put(self._output, SEPARATOR, dim=True)
        self.prompt()

    def remark(self, text: str) -> None:
        """Show a dim line on standard error if it is a terminal."""
        if self._errors.isatty():
            self._put(self._errors, f"{text}\n", dim=True)

    def _put(self, stream: TextIO, text: str, *, dim: bool) -> None:
        if not text:
            return
        shown = safe(text) if stream.isatty() else text
        if stream is self._output:
            shown = self._live.passed(shown) if self._live else shown
            self._at_line_start = text.endswith("\n")
        if dim and _has_styles(stream):
            words = shown.rstrip("\n")
            shown = f"\x1b[2m{words}\x1b[0m{shown[len(words) :]}"
        _write(stream, shown)


def _write(stream: TextIO, text: str) -> None:
    if text:
        stream.write(text)
        stream.flush()


def safe(text: str) -> str:
    """Return text without the control characters that could move the cursor of a terminal."""
    return text.translate(_UNSAFE)


def _has_styles(stream: TextIO) -> bool:
    console = Console(file=stream)
    return (
        console.is_terminal and console.color_system is not None and not console.no_color and not console.legacy_windows
    )

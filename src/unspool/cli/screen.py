"""What is shown where: text on standard output, remarks on standard error, dim in a terminal and plain in a pipe.

Owns: the two streams while a command runs. Does not know: models.
"""

from __future__ import annotations

import sys
from typing import TextIO

from rich.console import Console

from unspool.cli.live import LiveTail, terminal_size

SEPARATOR = "---\n"

# A model may write control characters; in a terminal they could move the cursor or worse. Pipes get the text as it is.
_UNSAFE = {code: None for code in (*range(0x20), 0x7F, *range(0x80, 0xA0)) if chr(code) not in "\t\n"}


class Screen:
    """Shows the outputs of one prompt as they stream in.

    Args:
        prompt: shown before each output, dim, in a terminal.
        echo: whether a pipe gets the prompt too.
        output, errors: where text and remarks go; None for this process's own streams.
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
        """Whether a tail can be told from the text and taken back: in a terminal with styles alone."""
        return self._live is not None

    def prompt(self) -> None:
        """Show the prompt where it is wanted."""
        if self._shows_prompt:
            self._put(self._output, self._prompt, dim=True)

    def text(self, text: str, *, tail: str | None = None) -> None:
        """Show a piece of text at once, and behind it, dim, what may be taken back.

        Args:
            tail: replaces the one before; None leaves it as it is, "" takes it away. Ignored where none can be shown.
        """
        if self._live is None:
            self._put(self._output, text, dim=False)
            return
        self._live.show(safe(text), None if tail is None else safe(tail))
        if text:
            self._at_line_start = text.endswith("\n")

    def end_line(self) -> None:
        """Take the tail away and go to a new line unless there already."""
        if self._live is not None:
            self._live.end()
        if not self._at_line_start:
            self.text("\n")

    def part(self) -> None:
        """Part the output before from the one that follows."""
        self.end_line()
        self._put(self._output, SEPARATOR, dim=True)
        self.prompt()

    def remark(self, text: str) -> None:
        """Show a dim line on standard error where a person sees it; else nothing."""
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

"""Where messages come from: a person at a terminal, or lines in a pipe.

Owns: reading them, several lines as one where they say so. Does not know: what messages mean.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Final, Protocol

from unspool.errors import PromptError

PROMPT, CONTINUED = "> ", ". "
_GOES_ON: Final = "\\"


class Source(Protocol):
    """Brings messages, one at a time."""

    interactive: bool

    def message(self, begin: str = "") -> str:
        """Return the next message; lines that end with a backslash go on with the next.

        Args:
            begin: what stands there to be edited, where a person can.

        Raises:
            EOFError: there is none any more. KeyboardInterrupt: the person thought otherwise.
        """
        ...


class Keyboard:
    """A person at a terminal: arrow keys, a history of this session, completion; pasted lines are one message.

    Args:
        complete: returns what a line that is being written may go on with: whole last words.
    """

    interactive = True

    def __init__(self, complete: Callable[[str], Sequence[str]]) -> None:
        self._complete = complete
        self._readline = _line_editor()
        if self._readline is not None:
            self._readline.set_completer_delims(" \t\n")
            self._readline.set_completer(self._completion)
            libedit = "libedit" in (self._readline.__doc__ or "")
            self._readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
            if not libedit:
                self._readline.parse_and_bind("set enable-bracketed-paste on")

    def message(self, begin: str = "") -> str:
        """Return what is written next; see Source."""
        return _joined(lambda first: self._line(PROMPT if first else CONTINUED, begin if first else ""))

    def _line(self, prompt: str, begin: str) -> str:
        editor = self._readline
        if editor is None or not begin:
            return input(prompt)
        editor.set_startup_hook(lambda: editor.insert_text(begin))
        try:
            return input(prompt)
        finally:
            editor.set_startup_hook(None)

    def _completion(self, word: str, index: int) -> str | None:
        assert self._readline is not None, "only a line editor completes"
        found = self._complete(self._readline.get_line_buffer()[: self._readline.get_endidx()])
        return found[index] if index < len(found) else None


class Piped:
    """Lines of standard input, a message each."""

    interactive = False

    def message(self, begin: str = "") -> str:
        """Return the next line; see Source."""
        return _joined(lambda first: self._line())

    def _line(self) -> str:
        raw = sys.stdin.buffer.readline()
        if not raw:
            raise EOFError
        try:
            return raw.decode("utf-8-sig").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise PromptError(f"standard input is not UTF-8 text: byte {error.start} of a line does not fit") from None


def _joined(line: Callable[[bool], str]) -> str:
    """Return lines as one text, as long as they end with a backslash. `line` is told whether it is the first."""
    lines = [line(True)]
    while lines[-1].endswith(_GOES_ON):
        lines[-1] = lines[-1].removesuffix(_GOES_ON)
        try:
            lines.append(line(False))
        except EOFError:
            break
    return "\n".join(lines)


def _line_editor() -> ModuleType | None:
    """Return the readline module; importing it is what makes `input` edit lines."""
    try:
        import readline
    except ImportError:  # Windows has none, and edits lines by itself
        return None
    return readline

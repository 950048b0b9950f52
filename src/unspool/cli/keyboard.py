"""Sources of messages: the keyboard of a terminal, or lines of a pipe.

Owns: reading messages, also of several lines. Does not know: the meaning of messages.
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
    """Returns messages, one at a time."""

    interactive: bool

    def message(self, begin: str = "") -> str:
        """Return the next message. A backslash at the end of a line continues the message on the next line.

        Args:
            begin: text to edit; ignored in a pipe.

        Raises:
            EOFError: if the input has ended.
            KeyboardInterrupt: if the user presses Ctrl-C.
        """
        ...


class Keyboard:
    """The keyboard of a terminal: arrow keys, history of this session, completion; pasted lines are one message.

    Args:
        complete: returns the completions of the last word of an unfinished line.
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
        """Return the next message; see Source."""
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
    """Lines of standard input, one message per line."""

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
    """Return a line, joined with the next lines after a backslash. `line` gets True for the first line."""
    lines = [line(True)]
    while lines[-1].endswith(_GOES_ON):
        lines[-1] = lines[-1].removesuffix(_GOES_ON)
        try:
            lines.append(line(False))
        except EOFError:
            break
    return "\n".join(lines)


def _line_editor() -> ModuleType | None:
    """Return the readline module, or None if it is missing. Importing it enables line editing in `input`."""
    try:
        import readline
    except ImportError:  # missing on Windows, which has its own line editing
        return None
    return readline

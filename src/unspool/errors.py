"""Every error Unspool raises on purpose.

UnspoolError
├── OptionError (ValueError)      an option is unknown, out of range, or not read by the chosen strategy
├── PromptError (ValueError)      a prompt is empty, malformed, or too long for the model
├── CapacityError (ValueError)    a request can never fit into the memory it may use
├── ModelError (ValueError)       a model cannot be loaded, or not be run by the path asked for
├── NumericsError (ArithmeticError)  NaN, or a position where every token is forbidden
├── StrategyError (RuntimeError)  a strategy broke the rules of the conversation
├── CancelledRequest              the request was cancelled by its owner
└── MissingExtra (ImportError)    an optional package is needed; the message is the line that installs it
"""

from __future__ import annotations

from typing import Any, Final

_LONGEST_SHOWN: Final = 200
"""Characters of a given value in a message; a list can have one value for each of many prompts."""


class UnspoolError(Exception):
    """Root of the tree: catch this to catch all of ours."""


class OptionError(UnspoolError, ValueError):
    """An option cannot be honoured. Carries what a program needs to act on it.

    Args:
        option: the option's name.
        given: the value that was given.
        allowed: what is allowed, in words.
        hint: what to do, in words.
    """

    def __init__(self, option: str, given: Any, allowed: str, hint: str) -> None:
        self.option, self.given, self.allowed, self.hint = option, given, allowed, hint
        shown = repr(given)
        if len(shown) > _LONGEST_SHOWN:
            shown = f"{shown[:_LONGEST_SHOWN]}…"
        super().__init__(f"`{option}` {allowed}, got {shown}; {hint}")


class PromptError(UnspoolError, ValueError):
    """A prompt is empty, malformed, or leaves the model no room."""


class CapacityError(UnspoolError, ValueError):
    """A request needs more cache than it could ever be given."""


class ModelError(UnspoolError, ValueError):
    """A model cannot be loaded, run or saved."""


class NumericsError(UnspoolError, ArithmeticError):
    """A row of logits has a NaN, or nothing in it is allowed.

    Args:
        branch: number of the branch in its request.
        position: number of real tokens before the one that was to be chosen.
        reason: what is wrong with the row.
    """

    def __init__(self, branch: int, position: int, reason: str) -> None:
        self.branch, self.position = branch, position
        super().__init__(f"branch {branch}, position {position}: {reason}")


class StrategyError(UnspoolError, RuntimeError):
    """A strategy broke the rules of the conversation; the message names the move or ask."""


class CancelledRequest(UnspoolError):
    """The request was cancelled by its owner."""


class MissingExtra(UnspoolError, ImportError):
    """An optional package is absent; the message holds the exact pip line.

    Args:
        extra: name of the extra, as in `pip install "unspool[gguf]"`.
        package: name of the absent package.
        reason: what needs it, in words.
    """

    def __init__(self, extra: str, package: str, reason: str) -> None:
        self.extra, self.package, self.reason = extra, package, reason
        super().__init__(f'{reason}, which needs {package}: pip install "unspool[{extra}]"')

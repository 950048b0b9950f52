"""Exceptions: all errors that Unspool raises on purpose.

UnspoolError
├── OptionError (ValueError)      an option is unknown, out of range, or not read by the chosen strategy
├── PromptError (ValueError)      a prompt is empty, malformed, or too long for the model
├── CapacityError (ValueError)    a request can never fit into the memory that it can use
├── ModelError (ValueError)       a model cannot be loaded, or the requested backend cannot run it
├── NumericsError (ArithmeticError)  NaN, or a position with every token forbidden
├── StrategyError (RuntimeError)  a strategy yielded an invalid turn
├── CancelledRequest              the request was cancelled by its owner
└── MissingExtra (ImportError)    an optional package is missing; the message has the pip line that installs it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_LONGEST_SHOWN: Final = 200
"""Characters of a given value in a message; a list can have one value for each of many prompts."""


class UnspoolError(Exception):
    """Base class of all errors of Unspool."""


class OptionError(UnspoolError, ValueError):
    """An option is unknown, out of range, or in conflict with others. The fields let a program react.

    Args:
        option: the option's name.
        given: the given value.
        allowed: the rule, as text after the name, such as "must be at least 1".
        hint: how to fix it, as text.
    """

    def __init__(self, option: str, given: Any, allowed: str, hint: str) -> None:
        self.option, self.given, self.allowed, self.hint = option, given, allowed, hint
        super().__init__(f"`{option}` {allowed}, got {_shown(given)}; {hint}")


class PromptError(UnspoolError, ValueError):
    """A prompt is empty, malformed, or too long for the model."""


class CapacityError(UnspoolError, ValueError):
    """A request needs more KV cache than the engine can ever give it."""


class ModelError(UnspoolError, ValueError):
    """A model cannot be loaded, run or saved."""


class NumericsError(UnspoolError, ArithmeticError):
    """A row of logits contains NaN, or every token in it is forbidden.

    Args:
        branch: number of the branch in its request.
        position: number of real tokens before the token to choose.
        reason: the fault in the row, as text.
    """

    def __init__(self, branch: int, position: int, reason: str) -> None:
        self.branch, self.position = branch, position
        super().__init__(f"branch {branch}, position {position}: {reason}")


class StrategyError(UnspoolError, RuntimeError):
    """A strategy yielded an invalid turn; the message names the move or ask."""


class CancelledRequest(UnspoolError):
    """The request was cancelled by its owner."""


class MissingExtra(UnspoolError, ImportError):
    """An optional package is missing; the message has the exact pip line.

    Args:
        extra: name of the extra, as in `pip install "unspool[gguf]"`.
        package: name of the missing package.
        reason: the feature that needs it, as text.
    """

    def __init__(self, extra: str, package: str, reason: str) -> None:
        self.extra, self.package, self.reason = extra, package, reason
        super().__init__(f'{reason}, which needs {package}: pip install "unspool[{extra}]"')


def _shown(value: Any) -> str:
    """Return a short form of a value for a message; values that hold tensors or arrays as their types and shapes."""
    shown = repr(value)
    if ("tensor(" in shown or "array(" in shown) and getattr(value, "shape", None) != ():
        shown = kind_of(value)
        if isinstance(value, Mapping):
            shown += f" with the keys {', '.join(map(str, value))}"
        elif isinstance(value, list | tuple):
            shown += f" of {', '.join(dict.fromkeys(map(kind_of, value)))}"
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def kind_of(value: Any) -> str:
    """Return the type of a value, and its shape if it has one."""
    shape = getattr(value, "shape", None)
    return type(value).__name__ + ("" if shape is None else f" of shape {tuple(shape)}")

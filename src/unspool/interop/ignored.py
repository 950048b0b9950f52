"""The warning about options that are ignored or act only in part, which transformers accepts as well.

Owns: its text. Does not know: which options are ignored.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Final

from unspool.errors import OptionError

_BETWEEN: Final = ("transformers", "torch")
"""Packages with functions between a caller of `model.generate` and its decoding method; their number varies."""


def ignored_options(strict: bool) -> list[OptionError] | None:
    """Return an empty list to collect the errors of unread options; None if they must be raised.

    Raises:
        OptionError: if `strict` is not a boolean.
    """
    if not isinstance(strict, bool):
        raise OptionError("strict", strict, "must be True or False", "leave it out for False")
    return None if strict else []


def level_outside_transformers() -> int:
    """Return the stacklevel of the code that called transformers, counted from this function's caller as 1."""
    level, frame = 2, sys._getframe(2)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _BETWEEN:
        level, frame = level + 1, frame.f_back
    return level


def warn_of_ignored(errors: Sequence[OptionError] | None, *, stacklevel: int) -> None:
    """Warn once about all options that a call ignores, wholly or in part.

    Args:
        errors: one per option, with the reason and the remedy; None or empty for no warning.
        stacklevel: of the caller's code, counted from this function's caller as 1.
    """
    if not errors:
        return
    reasons = "; ".join(f"`{error.option}` {error.allowed}: {error.hint}" for error in errors)
    names = ", ".join(f"`{error.option}`" for error in errors)
    message = f"these options are ignored or act only in part: {reasons}. To silence this warning, leave out {names}; "
    warnings.warn(f"{message}with strict=True it is an error", UserWarning, stacklevel=stacklevel + 1)

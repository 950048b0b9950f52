"""Checks on the results of the caller's functions and of transformers' objects: token ids, scores and verdicts.

Owns: the accepted forms, and the errors for all others. Does not know: the use of the results.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from unspool.errors import OptionError


def token_ids(returned: Any, vocab_size: int, *, option: str, when: str) -> torch.Tensor:
    """Return the token ids that a function allows. --> [ids] int64, on the CPU

    Args:
        returned: ids in any iterable, array or tensor; or a boolean mask of the whole vocabulary.
        vocab_size: ids are in [0, vocab_size).
        option: the name of the function's option.
        when: the call, for the error.

    Raises:
        OptionError: if it is anything else, or allows no token.
    """
    found = _tensor(returned)
    if found is not None and not found.ndim:
        found = None
    if found is not None and found.dtype == torch.bool:
        found = found.nonzero()[:, 0] if found.shape == (vocab_size,) else None
    if found is None or (found.numel() and (found.is_floating_point() or found.is_complex())):
        allowed = f"must return token ids, or a boolean mask of the {vocab_size} tokens ({when})"
        raise OptionError(option, _shown(returned), allowed, "return a list of integers")
    found = found.flatten().long()
    if not len(found):
        hint = "return at least one token id, such as the end of sequence"
        raise OptionError(option, [], f"must allow a token at each step, and allows none ({when})", hint)
    outside = found[(found < 0) | (found >= vocab_size)]
    if len(outside):
        allowed = f"must return token ids in [0, {vocab_size}) ({when})"
        raise OptionError(option, int(outside[0]), allowed, "use ids of this model's own tokenizer")
    return found


def _tensor(returned: Any) -> torch.Tensor | None:
    """Return numbers as a tensor on the CPU; None for other objects."""
    if isinstance(returned, torch.Tensor):
        return returned.detach().cpu()
    if isinstance(returned, str | bytes | Mapping):
        return None
    given = list(returned) if isinstance(returned, Iterable) and not isinstance(returned, np.ndarray) else returned
    try:
        return torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def check_scores(returned: Any, *, like: torch.Tensor, rows: list[int], by: str, when: str) -> torch.Tensor:
    """Check the scores that a LogitsProcessor returned, and return them.

    Args:
        like: [batch rows, vocab], the scores that the object was given.
        rows: the batch rows that are read; only these must hold numbers.
        by: the name of the object's class. when: the call, for the error.

    Raises:
        OptionError: if it is not a floating-point tensor of this shape, or holds NaN or +inf.
    """
    hint = f"fix {by}"
    if not isinstance(returned, torch.Tensor) or returned.shape != like.shape or not returned.is_floating_point():
        allowed = f"must hold objects that return floating-point scores of shape {tuple(like.shape)} ({when})"
        raise OptionError("logits_processor", _shown(returned), allowed, hint)
    if not are_numbers(returned[rows]):
        allowed = f"must hold objects that return numbers and -inf ({when})"
        raise OptionError("logits_processor", "NaN or +inf", allowed, hint)
    return returned


def are_numbers(scores: torch.Tensor) -> bool:
    """Return whether scores hold neither NaN nor +inf."""
    return bool((scores < torch.inf).all())


def verdicts(returned: Any, rows: int, *, by: str, when: str) -> list[bool]:
    """Return a StoppingCriteria's verdict on each row.

    Args:
        returned: one boolean for all rows, or one per row; integers count as booleans.
        rows: their number. by: the name of the object's class. when: the call, for the error.

    Raises:
        OptionError: if it is anything else.
    """
    found = _tensor(returned)
    is_fit = found is not None and not found.is_floating_point() and not found.is_complex()
    if found is None or not is_fit or found.numel() not in (1, rows):
        allowed = f"must hold objects that return one boolean for each of the {rows} rows ({when})"
        raise OptionError("stopping_criteria", _shown(returned), allowed, f"fix {by}")
    said: list[bool] = found.bool().flatten().tolist()
    return said * rows if len(said) == 1 else said


def _shown(returned: Any) -> Any:
    """Return the value if it fits a line, else its type; of a tensor or array its dtype and shape."""
    if isinstance(returned, torch.Tensor | np.ndarray):
        kind = "a tensor" if isinstance(returned, torch.Tensor) else "an array"
        return f"{kind} of {returned.dtype} and shape {tuple(returned.shape)}"
    is_short = returned is None or isinstance(returned, bool | int | float | str) or len(repr(returned)) < 80
    return returned if is_short else type(returned).__name__

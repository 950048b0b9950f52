"""Temperature, finite scores and renormalization: processors that change the whole distribution.

Owns: temperature, remove_invalid_values, renormalize_logits. Does not know: the output so far.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unspool.processors.base import Fixed
from unspool.processors.rows import column
from unspool.protocols import Context, RowKey


class Temperature(Fixed[float]):
    """Divide the scores by `temperature`: above 1 flattens the distribution, below 1 sharpens it.

    Off at None and 1.0. Temperature 0 means greedy decoding, a choice of strategy.

    Worked example: scores (2, 1, -inf) at temperature 0.5 become (4, 2, -inf).
    """

    name = "temperature"

    def start(self, context: Context) -> float | None:
        """Return the temperature; None if it is off."""
        temperature = context.config.temperature
        return None if temperature is None or temperature == 1.0 else float(temperature)

    def apply(self, states: Sequence[float], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scaled scores, changed in place. scores: [rows, vocab]"""
        return scores.div_(column(states, scores))


class RemoveInvalidValues(Fixed[bool]):
    """Make all scores finite: NaN becomes 0, +inf the greatest and -inf the least number.

    Off unless `remove_invalid_values` is true. Later processors can still forbid tokens.

    Worked example: scores (NaN, 2, -inf) become (0, 2, -3.4e38).
    """

    name = "remove_invalid_values"

    def start(self, context: Context) -> bool | None:
        """Return True; None if it is off."""
        return True if context.config.remove_invalid_values else None

    def apply(self, states: Sequence[bool], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the finite scores, changed in place. scores: [rows, vocab]"""
        return torch.nan_to_num_(scores, nan=0.0)


class RenormalizeLogits(Fixed[bool]):
    """Turn the scores into log-probabilities over the allowed tokens. Off unless `renormalize_logits` is true.

    Worked example: scores (0, 0, -inf) become (log 1/2, log 1/2, -inf).
    """

    name = "renormalize_logits"

    def start(self, context: Context) -> bool | None:
        """Return True; None if it is off."""
        return True if context.config.renormalize_logits else None

    def apply(self, states: Sequence[bool], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the log-softmax of each row. scores: [rows, vocab]"""
        return scores.log_softmax(-1)

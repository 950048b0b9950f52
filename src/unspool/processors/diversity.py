"""Hamming diversity: a penalty on tokens that other branches chose at the same position.

Owns: diversity_penalty. Does not know: groups of beams, or their order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from unspool.processors.base import Fixed
from unspool.protocols import Context, RowKey


class Diversity(Fixed[float]):
    """Subtract `diversity_penalty` from a token's score for each time it occurs in the row's `taken_tokens`. Off at 0.

    Worked example: penalty 0.5, taken_tokens (7, 2, 7): token 7 loses 1.0, token 2 loses 0.5.

    Source: transformers 4, `HammingDiversityLogitsProcessor`; Vijayakumar et al. 2018, Diverse Beam Search, section 3.
    """

    name = "diversity_penalty"

    def start(self, context: Context) -> float | None:
        """Return the penalty; None if it is off."""
        return context.config.diversity_penalty or None

    def apply(self, states: Sequence[float], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores with the penalties subtracted in place. scores: [rows, vocab]"""
        cells = [
            (row, token, penalty * count)
            for row, (penalty, key) in enumerate(zip(states, keys, strict=True))
            for token, count in Counter(key.taken_tokens).items()
        ]
        if cells:
            rows, tokens, penalties = zip(*cells, strict=True)
            index = (torch.tensor(rows, device=scores.device), torch.tensor(tokens, device=scores.device))
            scores[index] -= torch.tensor(penalties, dtype=scores.dtype, device=scores.device)
        return scores

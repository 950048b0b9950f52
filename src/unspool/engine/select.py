"""From scores to candidates: best tokens, draws, named tokens, for many rows in a few batched calls.

Ties go to the lowest token id. Top-k kernels promise no order among equals, so one more than k is fetched, and only a
row where two of those are equal is repaired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unspool.noise import NoiseKey, gumbel
from unspool.processors.rows import FORBIDDEN, best

FEW = 1024
"""Noise is drawn for the surviving tokens alone where no row has more than this many of them."""


class Picked(NamedTuple):
    """Tokens picked from one row, in order; `values` are scores, or scores plus noise."""

    tokens: list[int]
    values: list[float]


def top(scores: torch.Tensor, k: int) -> list[Picked]:
    """Return the k best allowed tokens of each row, best first, fewer where fewer are allowed. scores: [rows, vocab]"""
    vocab = scores.shape[-1]
    k = min(k, vocab)
    values, tokens = best(scores, k + 1)  # --> [rows, k + 1]
    picked = []
    for row, (row_values, row_tokens) in enumerate(zip(values.tolist(), tokens.tolist(), strict=True)):
        if any(a == b > FORBIDDEN for a, b in zip(row_values, row_values[1:], strict=False)):
            row_values, row_tokens = _stable_top(scores[row], k)
        keep = sum(value > FORBIDDEN for value in row_values[:k])
        picked.append(Picked(row_tokens[:keep], row_values[:keep]))
    return picked


def _stable_top(scores: torch.Tensor, k: int) -> tuple[list[float], list[int]]:
    """Return the k best of one row with ties in order of token id."""
    kth = torch.topk(scores, k).values[-1]
    tokens = torch.nonzero(scores >= kth)[:, 0]  # ascending ids
    values, order = torch.sort(scores[tokens], descending=True, stable=True)
    return values[:k].tolist(), tokens[order][:k].tolist()


def perturbed(scores: torch.Tensor, keys: Sequence[NoiseKey], k: int) -> list[Picked]:
    """Return the k largest of score + Gumbel noise in each row: k draws without replacement, in the order drawn.

    With k = 1 that is one draw from softmax(scores). The draw does not depend on whether noise was computed for the
    survivors alone or for the whole vocabulary, since each token's noise is its own.
    """
    survivors = (scores > FORBIDDEN).sum(-1)  # --> [rows]
    count = max(int(survivors.max()), 1)
    if count > min(FEW, scores.shape[-1] // 4):
        noisy = scores + gumbel(keys, torch.arange(scores.shape[-1], device=scores.device))
        return top(noisy, k)
    values, tokens = best(scores, count)  # --> [rows, count]
    noisy = values + gumbel(keys, tokens)
    drawn = top(noisy, k)
    ids = tokens.tolist()
    return [Picked([ids[row][index] for index in each.tokens], each.values) for row, each in enumerate(drawn)]

"""The sampler: top-k tokens and random draws from scores, for many rows in a few batched calls.

Ties go to the lowest token id. Top-k kernels leave equal values in any order, so they list a few more than k tokens.
Ties within the list are resolved on the host. The full row is read only if ties can continue beyond the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from unspool.noise import NoiseKey, gumbel, gumbel_parts, streams
from unspool.processors.rows import FORBIDDEN, Best, best, first_best, on_host, survivors, token_ids

SPARE = 4
"""So many tokens are listed behind the k best."""

FEW = 64
"""Noise is drawn for the allowed tokens alone where no row has more than this many of them."""

_WORK = 2**18
"""Tokens that are given their noise at once: 2 MiB of numbers on the way there."""


class Picked(NamedTuple):
    """Tokens picked from one row, in order; `values` are scores, or scores plus noise."""

    tokens: list[int]
    values: list[float]


class TopKList(NamedTuple):
    """The first tokens of each row, where they were computed; ties among them stand in any order.

    values, tokens: [rows, listed], best first. whole: returns all values of a row, [vocab].
    """

    values: torch.Tensor
    tokens: torch.Tensor
    whole: Callable[[int], torch.Tensor]

    def full_row_top_k(self, row: int, k: int) -> Picked:
        """Look at a whole row, where ties go on behind the list; another transfer."""
        scores = self.whole(row)
        kth = torch.topk(scores, min(k, len(scores))).values[-1]
        tokens = torch.nonzero(scores >= kth)[:, 0]  # ascending ids
        values, order = torch.sort(scores[tokens], descending=True, stable=True)
        return Picked(tokens[order][:k].tolist(), values[:k].tolist())


def resolve_ties(values: Sequence[float], tokens: Sequence[float], k: int) -> Sequence[int] | None:
    """Return where the k first allowed tokens of a row stand in its list, fewer where fewer are allowed.

    None where a tie decides who is in, and may go on behind the list. values, tokens: of the list.
    """
    ahead = values[: k + 1]
    if len(set(ahead)) == len(ahead):  # no ties, so no more than one that is forbidden
        count = min(len(ahead), k)
        return range(count - 1 if ahead[count - 1] == FORBIDDEN else count)
    if values[min(k, len(values)) - 1] == values[-1] > FORBIDDEN:
        return None
    allowed = (place for place, value in enumerate(values) if value > FORBIDDEN)
    return sorted(allowed, key=lambda place: (-values[place], tokens[place]))[:k]


def top_k_list(scores: torch.Tensor, k: int, log_norm_offset: torch.Tensor | None = None) -> TopKList:
    """List the k best tokens of each row, with a few more where ties are still open.

    scores: [rows, vocab]. shift: [rows, 1], taken off the scores listed, where rounding may make ties of them.
    """
    if log_norm_offset is None:
        return TopKList(*_foremost(scores, k), scores.__getitem__)
    found = best(scores, k + SPARE)
    return TopKList(found.values - log_norm_offset, found.ids, lambda row: scores[row] - log_norm_offset[row])


def _foremost(scores: torch.Tensor, k: int) -> Best:
    return first_best(scores) if k == 1 and on_host(scores) else best(scores, k + SPARE)


def top(scores: torch.Tensor, k: int) -> list[Picked]:
    """Return the k best allowed tokens of each row, best first, fewer where fewer are allowed. scores: [rows, vocab]"""
    return _picked(top_k_list(scores, k), k)


def perturbed(scores: torch.Tensor, keys: Sequence[NoiseKey], k: int) -> list[Picked]:
    """Return the k largest of score + Gumbel noise in each row: k draws without replacement, in the order drawn."""
    return _picked(draw(scores, keys, k), k)


def _picked(found: TopKList, k: int) -> list[Picked]:
    picked = []
    for row, (values, tokens) in enumerate(zip(found.values.tolist(), found.tokens.tolist(), strict=True)):
        places = resolve_ties(values, tokens, k)
        if places is None:
            picked.append(found.full_row_top_k(row, k))
        else:
            picked.append(Picked([tokens[place] for place in places], [values[place] for place in places]))
    return picked


def draw(scores: torch.Tensor, keys: Sequence[NoiseKey], k: int) -> TopKList:
    """List the k largest of score + Gumbel noise in each row: k draws without replacement, in the order drawn.

    With k = 1 that is one draw from softmax(scores). What is drawn does not depend on whether noise was computed for
    the allowed tokens alone or for the whole vocabulary, since each token's noise is its own.
    """
    vocab, device = scores.shape[-1], scores.device
    named = streams(keys, device)

    def whole(row: int) -> torch.Tensor:
        return gumbel(named[row : row + 1], token_ids(0, vocab, device)).add_(scores[row])[0]

    few = survivors(scores, FEW)
    if few is not None:
        values, places = (few.values + gumbel(named, few.ids)).topk(min(k + SPARE, few.ids.shape[1]))
        return TopKList(values, few.ids.gather(1, places), whole)
    step = max(_WORK // vocab, 1)
    parts = enumerate(gumbel_parts(named, vocab, step))
    found = [_foremost(noise.add_(scores[index * step : (index + 1) * step]), k) for index, noise in parts]
    return TopKList(torch.cat([each.values for each in found]), torch.cat([each.ids for each in found]), whole)

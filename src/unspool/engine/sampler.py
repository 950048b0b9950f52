"""The sampler: top-k tokens and random draws from scores, for many rows in a few batched calls.

Ties go to the lowest token id. Top-k kernels leave equal values in any order, so they list a few more than k tokens.
Ties within the list are resolved on the host. The full row is read only if ties can continue beyond the list.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from unspool.kernels.top_k import Best
from unspool.noise import NoiseKey, gumbel, gumbel_parts, streams
from unspool.processors.rows import FORBIDDEN, best, first_best, on_host, survivors, token_ids
from unspool.tuning import FEW_ALLOWED_TOKENS, NOISE_TOKENS_PER_CALL, SPARE_CANDIDATES


class Picked(NamedTuple):
    """Tokens picked from one row, best or first drawn first. values: their scores, or scores plus noise."""

    tokens: list[int]
    values: list[float]


class TopKList(NamedTuple):
    """The best tokens of each row, on the device that computed them. Ties are in any order.

    values, tokens: [rows, listed], best first. whole: returns all values of a row, [vocab]. scores: of the tokens
    before an offset was subtracted, [rows, listed]; None without an offset.
    """

    values: torch.Tensor
    tokens: torch.Tensor
    whole: Callable[[int], torch.Tensor]
    scores: torch.Tensor | None = None

    def full_row_top_k(self, row: int, k: int) -> Picked:
        """Return the k best tokens of a full row, for ties beyond the list. Needs another transfer."""
        scores = self.whole(row)
        kth = torch.topk(scores, min(k, len(scores))).values[-1]
        tokens = torch.nonzero(scores >= kth)[:, 0]  # ascending ids
        values, order = torch.sort(scores[tokens], descending=True, stable=True)
        return Picked(tokens[order][:k].tolist(), values[:k].tolist())


def resolve_ties(values: Sequence[float], tokens: Sequence[float], k: int) -> Sequence[int] | None:
    """Return the list positions of a row's k best allowed tokens, or of fewer if fewer are allowed.

    None if a tie at position k can continue beyond the list. values, tokens: the row's list.
    """
    ahead = values[: k + 1]
    if len(set(ahead)) == len(ahead):  # no ties, so at most one forbidden token
        count = min(len(ahead), k)
        return range(count - 1 if ahead[count - 1] == FORBIDDEN else count)
    if values[min(k, len(values)) - 1] == values[-1] > FORBIDDEN:
        return None
    allowed = (place for place, value in enumerate(values) if value > FORBIDDEN)
    return sorted(allowed, key=lambda place: (-values[place], tokens[place]))[:k]


def top_k_list(
    scores: torch.Tensor, k: int, log_norm_offset: torch.Tensor | None = None, known: Best | None = None
) -> TopKList:
    """List the k best tokens of each row, with a few more to resolve ties.

    Args:
        scores: [rows, vocab].
        k: at least 1.
        log_norm_offset: [rows, 1], subtracted from listed scores only, because rounding can create ties; None for 0.
        known: the best token of each row, as `first_best`; None if it is not known.
    """
    if log_norm_offset is None:
        found = known if k == 1 and known is not None else _foremost(scores, k)
        return TopKList(*found, scores.__getitem__)
    values, ids = best(scores, k + SPARE_CANDIDATES)
    return TopKList(values - log_norm_offset, ids, lambda row: scores[row] - log_norm_offset[row], values)


def _foremost(scores: torch.Tensor, k: int) -> Best:
    return first_best(scores) if k == 1 and on_host(scores) else best(scores, k + SPARE_CANDIDATES)


def top(scores: torch.Tensor, k: int) -> list[Picked]:
    """Return the k best allowed tokens of each row, best first, or fewer if fewer are allowed. scores: [rows, vocab]"""
    return _picked(top_k_list(scores, k), k)


def perturbed(scores: torch.Tensor, keys: Sequence[NoiseKey], k: int) -> list[Picked]:
    """Return k draws without replacement per row, in the order drawn: the largest sums of score and Gumbel noise."""
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
    """List k draws without replacement per row, in the order drawn: the largest sums of score and Gumbel noise.

    k = 1 is one draw from softmax(scores). Each token's noise depends on its own key and id. So the result is the same
    if noise is computed for the allowed tokens only, or for the whole vocabulary.
    """
    vocab, device = scores.shape[-1], scores.device
    named = streams(keys, device)

    def whole(row: int) -> torch.Tensor:
        return gumbel(named[row : row + 1], token_ids(0, vocab, device)).add_(scores[row])[0]

    few = survivors(scores, FEW_ALLOWED_TOKENS)
    if few is not None:
        values, places = (few.values + gumbel(named, few.ids)).topk(min(k + SPARE_CANDIDATES, few.ids.shape[1]))
        return TopKList(values, few.ids.gather(1, places), whole)
    step = max(NOISE_TOKENS_PER_CALL // vocab, 1)
    parts = enumerate(gumbel_parts(named, vocab, step))
    found = [_foremost(noise.add_(scores[index * step : (index + 1) * step]), k) for index, noise in parts]
    return TopKList(torch.cat([each.values for each in found]), torch.cat([each.ids for each in found]), whole)

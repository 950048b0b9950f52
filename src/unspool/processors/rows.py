"""Vocabulary-wide work that several processors share.

Owns: the best tokens of a row, keeping only those, sums over a row, and columns of parameters.
Does not know: requests, states, or why a token is kept.

Every function treats each row on its own and by the same arithmetic, however many rows there are, so that a row's
result is the same, bit for bit, alone and in company.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

FORBIDDEN = -math.inf

_BLOCK = 64


class Best(NamedTuple):
    """The highest scores of each row, best first. values: [rows, k] float32. ids: [rows, k] int64."""

    values: torch.Tensor
    ids: torch.Tensor


def column(numbers: Sequence[float], scores: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return one parameter for each row, on the device of `scores`. --> [rows, 1]"""
    return torch.tensor(numbers, dtype=dtype, device=scores.device)[:, None]


def row_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row. --> [rows, 1]"""
    if values.shape[0] == 1:
        # torch splits the sum of a lone row over its threads, which rounds otherwise than the same row among others.
        return values.expand(2, -1).sum(-1, keepdim=True)[:1]
    return values.sum(-1, keepdim=True)


def log_norm(scores: torch.Tensor) -> torch.Tensor:
    """Return each row's logsumexp, -inf where nothing is allowed; torch's own differs for a lone row. --> [rows]"""
    greatest = scores.amax(-1, keepdim=True)
    origin = greatest.where(greatest.isfinite(), 0.0)
    return (row_sum((scores - origin).exp_()).log_() + origin)[:, 0]


def best(scores: torch.Tensor, k: int) -> Best:
    """Return the k highest scores of each row, all of them where the vocabulary is smaller.

    Equal scores stand in any order, and which of those equal to the last one are listed is not defined.
    """
    vocab = scores.shape[1]
    k = min(k, vocab)
    blocks = vocab // _BLOCK
    if scores.device.type != "cpu" or 4 * k > blocks:
        return Best(*scores.topk(k))
    return _best_of_blocks(scores, k, blocks)


def _best_of_blocks(scores: torch.Tensor, k: int, blocks: int) -> Best:
    """Look only into the k blocks with the greatest maxima: no more than k - 1 blocks hold a token above the k-th."""
    body = blocks * _BLOCK
    folded = scores[:, :body].view(-1, blocks, _BLOCK)  # --> [rows, blocks, block]
    chosen = folded.amax(2).topk(k, sorted=False).indices  # --> [rows, k]
    inside = folded.gather(1, chosen[:, :, None].expand(-1, -1, _BLOCK)).flatten(1)
    values, places = torch.cat([inside, scores[:, body:]], 1).topk(k)  # --> [rows, k]
    in_tail = places >= k * _BLOCK
    block = chosen.gather(1, (places // _BLOCK).clamp(max=k - 1))
    ids = torch.where(in_tail, places + (body - k * _BLOCK), block * _BLOCK + places % _BLOCK)
    return Best(values, ids)


def keep_best(scores: torch.Tensor, found: Best, count: torch.Tensor, *, ties: bool = False) -> torch.Tensor:
    """Forbid, in place, all but the `count` highest scores of each row.

    Args:
        found: the best of `scores`, wider than `count` wherever that is less than the vocabulary.
        count: [rows, 1] int64, in [1, vocab].
        ties: whether every score equal to the last one kept stays too; if not, the lowest token ids stay.
    """
    width = found.values.shape[1]
    last = found.values.gather(1, count.clamp(max=width) - 1)
    following = found.values.gather(1, count.clamp(max=width - 1))
    tied = ((last == following) & (last > FORBIDDEN) & (count < width))[:, 0].nonzero()[:, 0]
    tied_scores = scores[tied]
    # Filling and scattering is several times faster than a masked fill of the whole vocabulary.
    kept = torch.arange(width, device=scores.device) < count
    scores.fill_(FORBIDDEN).scatter_(1, found.ids, found.values.masked_fill(~kept, FORBIDDEN))
    if len(tied):
        removed = tied_scores < last[tied] if ties else _removed(tied_scores, last[tied], count[tied])
        scores[tied] = tied_scores.masked_fill_(removed, FORBIDDEN)
    return scores


def _removed(scores: torch.Tensor, last: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Return which scores go if exactly `count` stay, `last` being the lowest of those. --> [rows, vocab] bool"""
    equal = scores == last
    room = count - (scores > last).sum(-1, keepdim=True)
    return (scores < last) | (equal & (equal.cumsum(-1) > room))


def forbid_but_best(scores: torch.Tensor, removed: torch.Tensor, least: Sequence[int]) -> torch.Tensor:
    """Forbid, in place, the removed tokens; the `least` best of each row, and those equal to the last, stay.

    Args:
        removed: [rows, vocab] bool.
        least: one for each row, at least 1.
    """
    if max(least) == 1:
        floor = scores.amax(-1, keepdim=True)
    else:
        places = column(least, scores, torch.int64).clamp(max=scores.shape[1]) - 1
        floor = best(scores, max(least)).values.gather(1, places)
    return scores.masked_fill_(removed & (scores < floor), FORBIDDEN)

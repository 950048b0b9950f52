"""Row operations over the vocabulary, shared by the processors: top-k, masks, sums and parameter columns.

Owns: the best tokens of a row, masks that keep only those, sums over a row, and columns of parameters.
Does not know: requests, states, or the reason why a token is kept.

All functions are batch-invariant: a row's result is bit for bit the same, alone or in a batch of any size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import torch

from unspool.kernels.top_k import Best
from unspool.kernels.top_k import log_norm as compiled_log_norm
from unspool.kernels.top_k import top_k as compiled_top_k
from unspool.tuning import TOP_K_BLOCK

FORBIDDEN = -math.inf


def on_host(values: torch.Tensor) -> bool:
    """Return True if the values can be read without a device synchronization."""
    return values.device.type == "cpu"


def column(numbers: Sequence[float], scores: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return one parameter per row, on the device of `scores`. The tensor is cached: do not modify it. --> [rows, 1]"""
    return _column(tuple(numbers), dtype, scores.device)


@lru_cache(maxsize=64)
def _column(numbers: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Cache the columns: a batch needs the same ones at every step, and each is a copy to the device."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, dtype=dtype, device=device)[:, None]


def indices(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> torch.Tensor:
    """Return row indices or token ids as an int64 tensor of the same shape."""
    return torch.tensor(numbers, dtype=torch.int64, device="cpu").to(device, non_blocking=True)


def rows_of(values: torch.Tensor, rows: Sequence[int]) -> torch.Tensor:
    """Return the given rows in the given order; all rows in order need no copy."""
    return values if rows == list(range(values.shape[0])) else values[indices(rows, values.device)]


def figures_of(values: torch.Tensor, rows: Sequence[int], tokens: torch.Tensor) -> torch.Tensor:
    """Return the values of tokens in the given rows. values: [any, vocab]; tokens: [rows, k] --> [rows, k]"""
    if rows == list(range(values.shape[0])):
        return values.gather(1, tokens)
    return values[indices(rows, values.device)[:, None], tokens]


@lru_cache(maxsize=16)
def token_ids(start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Return the ids in [start, stop). The tensor is cached: do not modify it. --> [stop - start] int64"""
    with torch.inference_mode(False):
        return torch.arange(start, stop, device=device)


def row_sum(values: torch.Tensor) -> torch.Tensor:
    """Return the sum of each row. --> [rows, 1]"""
    if values.shape[0] == 1:
        # torch splits the sum of a single row over its threads, so it rounds differently than in a batch.
        return values.expand(2, -1).sum(-1, keepdim=True)[:1]
    return values.sum(-1, keepdim=True)


def log_norm(scores: torch.Tensor) -> torch.Tensor:
    """Return each row's logsumexp, -inf if all tokens are forbidden. --> [rows]

    torch.logsumexp is not batch-invariant.
    """
    found = compiled_log_norm(scores)
    return (_log_norm(scores) if found is None else found[0])[:, 0]


def best_of_rows(best: Best | None, rows: Sequence[int]) -> Best | None:
    """Return the lists of some rows; None for None."""
    return None if best is None else Best(*(rows_of(each, rows) for each in best))


def log_norm_and_best(scores: torch.Tensor) -> tuple[torch.Tensor, Best | None]:
    """Return each row's logsumexp, [rows, 1], and its highest score, as `first_best`; None on a device."""
    found = compiled_log_norm(scores)
    return found or (_log_norm(scores), first_best(scores) if on_host(scores) else None)


def _log_norm(scores: torch.Tensor) -> torch.Tensor:
    """Return each row's logsumexp by PyTorch's operators. --> [rows, 1]"""
    # softmax is faster than exp, but its sum is rough. The greatest share gives that sum, and the sum of the shares
    # gives its error.
    shares = scores.softmax(-1)
    mass = row_sum(shares).div_(shares.amax(-1, keepdim=True))
    # The shares are NaN if all tokens are forbidden or a score is NaN or +inf; the greatest score then is the result.
    return mass.nan_to_num_(nan=1.0).log_().add_(scores.amax(-1, keepdim=True))


def best(scores: torch.Tensor, k: int) -> Best:
    """Return the k highest scores of each row, or all if the vocabulary is smaller.

    The order of equal scores is undefined, and so is the choice among scores equal to the k-th.
    """
    vocab = scores.shape[1]
    k = min(k, vocab)
    found = compiled_top_k(scores, k)
    if found is not None:
        return found
    blocks = vocab // TOP_K_BLOCK
    if not on_host(scores) or 4 * k > blocks:
        return Best(*scores.topk(k))
    return _best_of_blocks(scores, k, blocks)


def first_best(scores: torch.Tensor) -> Best:
    """Return the highest score of each row; ties go to the lowest id. scores: on the CPU"""
    # numpy's argmax is ten times faster than torch's, and takes the first of equal scores.
    ids = torch.from_numpy(scores.detach().numpy().argmax(1)).unsqueeze(1)
    return Best(scores.gather(1, ids), ids)


def survivors(scores: torch.Tensor, most: int) -> Best | None:
    """Return all allowed tokens of every row, best first; None if a row has more than `most`.

    Shorter rows are padded with forbidden tokens. Also None if the check needs a device synchronization.
    """
    rows, vocab = scores.shape
    if not on_host(scores):
        return None
    body = vocab // TOP_K_BLOCK * TOP_K_BLOCK
    blocks = scores[:, :body].view(rows, -1, TOP_K_BLOCK).amax(2) > FORBIDDEN if body else scores > FORBIDDEN
    if int(blocks.sum(1).max()) > most:
        return None
    found = best(scores, most + 1)
    whole = found.ids.shape[1] <= most or bool((found.values[:, -1] == FORBIDDEN).all())
    return found if whole else None


def _best_of_blocks(scores: torch.Tensor, k: int, blocks: int) -> Best:
    """Search only the k blocks with the greatest maxima: at most k - 1 blocks contain a token above the k-th."""
    rows, vocab = scores.shape
    body = blocks * TOP_K_BLOCK
    folded = scores[:, :body].view(rows, blocks, TOP_K_BLOCK)
    chosen = folded.amax(2).topk(k, sorted=False).indices  # --> [rows, k]
    ids = torch.add(token_ids(0, TOP_K_BLOCK, scores.device), chosen[:, :, None], alpha=TOP_K_BLOCK).flatten(1)
    if body < vocab:
        ids = torch.cat([ids, token_ids(body, vocab, scores.device).expand(rows, -1)], 1)
    values, places = scores.gather(1, ids).topk(k)  # --> [rows, k]
    return Best(values, ids.gather(1, places))


def keep_best(scores: torch.Tensor, found: Best, count: torch.Tensor, *, ties: bool = False) -> torch.Tensor:
    """Forbid, in place, all but the `count` highest scores of each row.

    Args:
        found: the best of `scores`, with more than `count` columns unless `count` is the whole vocabulary.
        count: [rows, 1] int64, in [1, vocab].
        ties: True keeps every score equal to the last one kept; False keeps the lowest token ids among them.
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
    """Return a mask of the scores to forbid so that `count` stay; `last` is the lowest kept. --> [rows, vocab] bool"""
    equal = scores == last
    room = count - (scores > last).sum(-1, keepdim=True)
    return (scores < last) | (equal & (equal.cumsum(-1) > room))


def forbid_but_best(scores: torch.Tensor, removed: torch.Tensor, least: Sequence[int]) -> torch.Tensor:
    """Forbid, in place, the removed tokens, except the `least` best of each row and all scores equal to the last.

    Args:
        removed: [rows, vocab] bool.
        least: number of tokens to keep, one per row, at least 1.
    """
    if max(least) == 1:
        floor = scores.amax(-1, keepdim=True)
    else:
        places = column(least, scores, torch.int64).clamp(max=scores.shape[1]) - 1
        floor = best(scores, max(least)).values.gather(1, places)
    return scores.masked_fill_(removed & (scores < floor), FORBIDDEN)

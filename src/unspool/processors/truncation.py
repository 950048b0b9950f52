"""Truncations: top-k, top-p, min-p, top-H and top-n-sigma keep only the head of the distribution.

Owns: top_h, top_k, top_p, min_p, top_n_sigma. Does not know: the output so far.
Only top_p can sort the whole vocabulary, if a row needs more than its 8192 best tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from unspool.processors.base import Fixed, Limit, limit
from unspool.processors.rows import FORBIDDEN, best, column, forbid_but_best, keep_best, row_sum
from unspool.protocols import Context, RowKey
from unspool.tuning import MASS_WIDTHS

_TOP_H_WIDTH = 100


class TopK(Fixed[int]):
    """Top-k: keep the `top_k` highest scores and every score equal to the k-th. Off at None and 0.

    Worked example: scores (1, 3, 2, 2, 0) with top_k=2 keep 3 and both 2s.

    Source: Fan et al. 2018; ties as in transformers.
    """

    name = "top_k"

    def start(self, context: Context) -> int | None:
        """Return the number of tokens to keep, at least `min_tokens_to_keep`; None if it is off."""
        top_k = context.config.top_k
        if context.config.penalty_alpha:
            return None  # contrastive search uses top_k as its number of candidates, without truncation
        return max(min(int(top_k), context.info.vocab_size), context.min_tokens_to_keep) if top_k else None

    def apply(self, states: Sequence[int], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        count = column(states, scores, torch.int64).clamp(max=scores.shape[1])
        return keep_best(scores, best(scores, max(states) + 1), count, ties=True)


class TopP(Fixed[Limit]):
    """Top-p (nucleus): keep a token if and only if the tokens before it, most probable first, have mass below `top_p`.

    The token that crosses the limit thus stays. If the mass equals the limit exactly, the next token is forbidden. Sums
    are float32, over the distribution of the allowed tokens. Ties go to the lowest token id. Off at None and 1.0.

    Worked example: probabilities (0.5, 0.25, 0.125, 0.125) with top_p=0.75 keep the first two, with 0.76 the first
    three: the lower id of the two equal ones.

    Source: Holtzman et al. 2020.
    """

    name = "top_p"

    def start(self, context: Context) -> Limit | None:
        """Return the mass to keep; None if it is off."""
        top_p = context.config.top_p
        return None if top_p is None or top_p >= 1.0 else limit(top_p, context)

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        mass = column([s.value for s in states], scores)
        least = column([s.least for s in states], scores, torch.int64).clamp(max=scores.shape[1])
        return _keep_mass(scores, mass, least, MASS_WIDTHS)


def _keep_mass(scores: torch.Tensor, mass: torch.Tensor, least: torch.Tensor, widths: tuple[int, ...]) -> torch.Tensor:
    """Keep `mass` among the best widths[0] tokens; only rows that need more try the next width.

    Batch-invariant. scores: [rows, vocab]; mass, least: [rows, 1]
    """
    vocab = scores.shape[1]
    width = min(widths[0], vocab) if widths else vocab
    found = best(scores, width)
    complete = found.values[:, -1:] == FORBIDDEN  # every allowed token is listed
    probs = (found.values - found.values[:, :1] + _best_logprob(scores, found.values, complete)).exp()
    before = probs.cumsum(-1).roll(1, -1)  # --> [rows, width]
    before[:, 0] = 0.0
    count = (before < mass).sum(-1, keepdim=True).maximum(least)
    # A row that keeps all listed tokens can need more, or have a tie after the last.
    wider = ((count >= width) & ~complete)[:, 0].nonzero()[:, 0] if width < vocab else scores.new_empty(0).long()
    rest = scores[wider]
    keep_best(scores, found, count)
    if len(wider):
        scores[wider] = _keep_mass(rest, mass[wider], least[wider], widths[1:])
    return scores


def _best_logprob(scores: torch.Tensor, listed: torch.Tensor, complete: torch.Tensor) -> torch.Tensor:
    """Return each row's greatest log-probability; a complete list needs no pass over the vocabulary. --> [rows, 1]"""
    result = listed.log_softmax(-1)[:, :1]
    partial = (~complete)[:, 0].nonzero()[:, 0]
    if len(partial) == len(scores):
        return scores.log_softmax(-1).amax(-1, keepdim=True)
    if len(partial):
        result[partial] = scores[partial].log_softmax(-1).amax(-1, keepdim=True)
    return result


class MinP(Fixed[Limit]):
    """Min-p: keep the tokens at least `min_p` times as probable as the best one. Off at None and 0.

    Worked example: probabilities (0.5, 0.3, 0.15, 0.05) with min_p=0.4 keep P >= 0.2: the first two.

    Source: Nguyen et al. 2024.
    """

    name = "min_p"

    def start(self, context: Context) -> Limit | None:
        """Return the fraction of the best probability; None if it is off."""
        return limit(context.config.min_p, context) if context.config.min_p else None

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        probs = scores.softmax(-1)
        removed = probs < column([s.value for s in states], scores) * probs.amax(-1, keepdim=True)
        return forbid_but_best(scores, removed, [s.least for s in states])


class TopH(Fixed[Limit]):
    """Top-H: keep tokens, most probable first, while their entropy is at most `top_h` times the whole entropy.

    The entropy is over the 100 best tokens, renormalized. The best token always stays. Off at None.

    Worked example: probabilities (1/2, 1/4, 1/8, 1/8) have 1.75 bits: 0.5 bits from each of the first two, 0.375 from
    each of the others; top_h=0.6 allows 1.05 bits: the first two stay.

    Source: "Top-H decoding" (2025), algorithm 1, as in transformers.
    """

    name = "top_h"

    def start(self, context: Context) -> Limit | None:
        """Return the share of the entropy; None if it is off."""
        return None if context.config.top_h is None else limit(context.config.top_h, context)

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        found = best(scores, max(_TOP_H_WIDTH, *(s.least for s in states)) + 1)
        logprobs = found.values[:, :_TOP_H_WIDTH].log_softmax(-1)
        entropies = -(logprobs.exp() * logprobs).nan_to_num(nan=0.0)  # --> [rows, 100]
        allowed = row_sum(entropies) * column([s.value for s in states], scores)
        # The sums never decrease, so the kept tokens are a prefix.
        count = (entropies.cumsum(-1) <= allowed).sum(-1, keepdim=True)
        least = column([s.least for s in states], scores, torch.int64).clamp(max=scores.shape[1])
        return keep_best(scores, found, count.maximum(least))


class TopNSigma(Fixed[Limit]):
    """Top-n-sigma: keep the scores within `top_n_sigma` standard deviations of the greatest. Off at None and <= 0.

    The deviation is the population's (divided by n, not n - 1), over the allowed scores. Temperature does not change
    the set of kept tokens.

    Worked example: scores (6, 2, 2, 2) have mean 3 and deviation sqrt(3). top_n_sigma=2 keeps scores of at least
    6 - 3.46 = 2.54: the first. top_n_sigma=3 keeps scores of at least 0.80: all.

    Source: Tang et al. 2024, "Top-n-sigma".
    """

    name = "top_n_sigma"

    def start(self, context: Context) -> Limit | None:
        """Return the number of deviations; None if it is off."""
        sigmas = context.config.top_n_sigma
        return None if sigmas is None or sigmas <= 0 else limit(sigmas, context)

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        allowed = scores > FORBIDDEN
        number = allowed.sum(-1, keepdim=True)
        mean = row_sum(scores.where(allowed, 0.0)) / number
        deviation = (row_sum((scores - mean).where(allowed, 0.0).square_()) / number).sqrt()
        floor = scores.amax(-1, keepdim=True) - column([s.value for s in states], scores) * deviation
        return forbid_but_best(scores, scores < floor, [s.least for s in states])

"""Truncations by entropy or probability: typical sampling, epsilon cutoff and eta cutoff.

Owns: typical_p, epsilon_cutoff, eta_cutoff. Does not know: the output so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from unspool.processors.base import Fixed, Limit, limit
from unspool.processors.rows import FORBIDDEN, best, column, forbid_but_best, row_sum
from unspool.protocols import Context, RowKey
from unspool.tuning import MASS_WIDTHS


def _entropy(logprobs: torch.Tensor, probs: torch.Tensor) -> torch.Tensor:
    """Return the entropy of each row in nats; forbidden tokens add 0. --> [rows, 1]"""
    return -row_sum((logprobs * probs).nan_to_num_(nan=0.0))


class TypicalP(Fixed[Limit]):
    """Typical sampling: keep the tokens with -ln P nearest to the entropy, until their mass reaches `typical_p`.

    The token that reaches the mass stays, and so do tokens at the same distance. Off at None and 1.0.

    Worked example: probabilities (0.6, 0.3, 0.1) have entropy 0.898 nats. -ln P is 0.511, 1.204, 2.303, at the
    distances 0.387, 0.306, 1.405; typical_p=0.2 keeps only the second, 0.5 the first two.

    Source: Meister et al. 2023.
    """

    name = "typical_p"

    def start(self, context: Context) -> Limit | None:
        """Return the mass to keep; None if it is off."""
        mass = context.config.typical_p
        return None if mass is None or mass >= 1.0 else limit(mass, context)

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        logprobs = scores.log_softmax(-1)
        probs = logprobs.exp()
        nearness = -(logprobs + _entropy(logprobs, probs)).abs_()
        mass = column([s.value for s in states], scores)
        least = column([s.least for s in states], scores, torch.int64).clamp(max=scores.shape[1])
        floor = _nearness_that_holds(nearness, probs, mass, least, MASS_WIDTHS)
        return scores.masked_fill_(nearness < floor, FORBIDDEN)


def _nearness_that_holds(
    nearness: torch.Tensor, probs: torch.Tensor, mass: torch.Tensor, least: torch.Tensor, widths: tuple[int, ...]
) -> torch.Tensor:
    """Return the nearness of the token that reaches the mass. Rows that need more than widths[0] tokens try the next.

    nearness, probs: [rows, vocab]; mass, least: [rows, 1] --> [rows, 1]
    """
    vocab = nearness.shape[1]
    width = min(widths[0], vocab) if widths else vocab
    found = best(nearness, width)
    reached = (probs.gather(1, found.ids).cumsum(-1) < mass).sum(-1, keepdim=True)
    last = reached.maximum(least - 1)
    floor = found.values.gather(1, last.clamp(max=width - 1))
    wider = (last >= width)[:, 0].nonzero()[:, 0]
    if len(wider) and width < vocab:
        floor[wider] = _nearness_that_holds(nearness[wider], probs[wider], mass[wider], least[wider], widths[1:])
    return floor


class EpsilonCutoff(Fixed[Limit]):
    """Epsilon sampling: keep the tokens with probability `epsilon_cutoff` or more, and always the best.

    Off at None, 0 and 1.

    Worked example: probabilities (0.6, 0.3, 0.1) with epsilon_cutoff=0.2 keep the first two.

    Source: Hewitt et al. 2022.
    """

    name = "epsilon_cutoff"

    def start(self, context: Context) -> Limit | None:
        """Return the least probability; None if it is off."""
        return _cutoff(context.config.epsilon_cutoff, context)

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        removed = scores.softmax(-1) < column([s.value for s in states], scores)
        return forbid_but_best(scores, removed, [s.least for s in states])


class EtaCutoff(Fixed[Limit]):
    """Eta sampling: keep the tokens with P >= min(eta, sqrt(eta) * exp(-entropy)), and always the best.

    Off at None, 0 and 1.

    Worked example: probabilities (0.6, 0.3, 0.1) have entropy 0.898 nats. eta_cutoff=0.09 keeps all tokens with
    P >= min(0.09, 0.3 * 0.407) = 0.09: all. eta_cutoff=0.25 keeps P >= min(0.25, 0.5 * 0.407) = 0.204: the first two.

    Source: Hewitt et al. 2022.
    """

    name = "eta_cutoff"

    def start(self, context: Context) -> Limit | None:
        """Return the cutoff; None if it is off."""
        return _cutoff(context.config.eta_cutoff, context)

    def apply(self, states: Sequence[Limit], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with all other tokens forbidden in place. scores: [rows, vocab]"""
        logprobs = scores.log_softmax(-1)
        probs = scores.softmax(-1)
        entropy = _entropy(logprobs, probs)  # --> [rows, 1]
        cutoff = column([s.value for s in states], scores)
        root = column([math.sqrt(s.value) for s in states], scores)
        removed = probs < cutoff.minimum(root * (-entropy).exp())
        return forbid_but_best(scores, removed, [s.least for s in states])


def _cutoff(value: float | None, context: Context) -> Limit | None:
    return limit(value, context) if value is not None and 0.0 < value < 1.0 else None

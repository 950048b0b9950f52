"""Rows of the trace: the candidates of a reply, and summary statistics of each distribution.

Owns the form of a row in the trace. Does not know how the token tree grew (unspool.engine.trace.recorder).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from unspool.engine import sampler
from unspool.records import AskKind, TraceCandidate, TraceCut, TraceNode, TraceRow, TraceToken
from unspool.types import (
    Ask,
    Candidate,
    Distribution,
    FullDistribution,
    GumbelTopK,
    Row,
    Sample,
    Score,
    Similarity,
    Top,
)

_KINDS: Mapping[type[Ask], AskKind] = {
    Top: "top",
    Sample: "sample",
    GumbelTopK: "perturbed",
    Score: "score",
    Similarity: "similarity",
    FullDistribution: "whole",
}


class RowStats(NamedTuple):
    """Summary statistics of a distribution; see TraceRow."""

    entropy: float
    num_allowed: int
    cuts: tuple[TraceCut, ...]
    best: tuple[TraceToken, ...]

    @classmethod
    def of(cls, cut: Distribution, log_norm: float, num_best: int) -> RowStats:
        """Summarize a distribution. log_norm: logsumexp of its scores. num_best: number of best tokens to keep."""
        probabilities = cut.logprobs.exp()
        counts = torch.bincount(cut.cut_by[cut.cut_by >= 0], minlength=len(cut.processors)).tolist()
        (best,) = sampler.top(cut.logprobs[None], num_best)
        return cls(
            entropy=-float(torch.where(probabilities > 0, probabilities * cut.logprobs, 0.0).sum()),
            num_allowed=int((cut.scores > -math.inf).sum()),
            cuts=tuple(
                TraceCut(processor=name, count=count)
                for name, count in zip(cut.processors, counts, strict=True)
                if count
            ),
            best=tuple(
                TraceToken(
                    token=token,
                    logprob=finite(logprob),
                    probability=_exp(logprob),
                    processed_probability=_exp(float(cut.scores[token]) - log_norm),
                    cut_by=cut.forbidden_by(token),
                )
                for token, logprob in zip(best.tokens, best.values, strict=True)
            ),
        )


class TraceRowSource(NamedTuple):
    """A replied row without its distribution, from which the trace row is built at the end.

    node: id of the node before the row's token; None in the prompt. length, draft: see TraceRow. view: statistics of
    the distribution; None for a row without one.
    """

    ask: Ask
    row: Row
    node: int | None
    length: int
    draft: bool
    view: RowStats | None

    @property
    def only(self) -> Candidate | None:
        """The only candidate; None for another number of candidates."""
        return self.row.candidates[0] if len(self.row.candidates) == 1 else None

    def read(self, children: Children, taken: Counter[int]) -> TraceRow:
        """Return the row for the trace. taken: see Children.became."""
        ask, row, view = self.ask, self.row, self.view
        noisy: Sequence[float | None] = row.perturbed or (None,) * len(row.candidates)
        return TraceRow(
            kind=_KINDS[type(ask)],
            branch=ask.branch,
            back=ask.back,
            draft=self.draft,
            node=self.node,
            length=self.length,
            candidates=tuple(
                _candidate(each, perturbed, row.log_norm, children.became(self.node, each.token, self.draft, taken))
                for each, perturbed in zip(row.candidates, noisy, strict=True)
            ),
            log_norm=finite(row.log_norm),
            entropy=view.entropy if view else None,
            num_allowed=view.num_allowed if view else None,
            cuts=view.cuts if view else (),
            best=view.best if view else (),
            similarity=row.similarity,
        )


class Children:
    """Finds the node of a candidate. Prefers nodes of outputs, then nodes that were not dropped, then older nodes."""

    def __init__(self, nodes: Sequence[TraceNode]) -> None:
        self._found: dict[tuple[int, int, bool], list[TraceNode]] = {}
        for node in nodes:
            if node.parent is not None and node.token is not None:
                self._found.setdefault((node.parent, node.token, node.draft), []).append(node)
        for same in self._found.values():
            same.sort(key=lambda node: (node.state != "output", node.state == "dropped", node.id))

    def became(self, parent: int | None, token: int, draft: bool, taken: Counter[int]) -> int | None:
        """Return the node's id, or None. taken: how often this step returned each node, so that equal draws differ."""
        same = [] if parent is None else self._found.get((parent, token, draft), [])
        if not same:
            return None
        node = min(same, key=lambda node: taken[node.id]).id
        taken[node] += 1
        return node


def finite(value: float | None) -> float | None:
    """Return the number; None for None, NaN and infinity, which JSON cannot represent."""
    return None if value is None or not math.isfinite(value) else value


def _candidate(candidate: Candidate, perturbed: float | None, log_norm: float, node: int | None) -> TraceCandidate:
    return TraceCandidate(
        token=candidate.token,
        logprob=finite(candidate.logprob),
        probability=_exp(candidate.logprob),
        score=finite(candidate.score),
        processed_probability=_exp(candidate.score - log_norm),
        perturbed=perturbed,
        ends=candidate.ends,
        chosen=node is not None,
        node=node,
    )


def _exp(logprob: float) -> float:
    """Return the probability, clipped to 1 because of rounding."""
    return min(1.0, math.exp(logprob))

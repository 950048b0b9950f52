"""Stochastic beam search: several different outputs, drawn as a whole without replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.beams import has_beams
from unspool.strategy_facts import StrategyFacts
from unspool.types import ROOT, Candidate, Commit, Drop, Extend, Fork, Hypothesis, Move, Perturbed, Reply, Space, Turn

if TYPE_CHECKING:
    from unspool.config.fields.options import Options


class Prefix(NamedTuple):
    """What a set of sequences begins with, or one whole sequence.

    branch, length: where its tokens stand, without `last`. logprob: its log-probability. perturbed: the greatest
    log-probability plus noise of all its sequences. last: the token that ends it; None while it goes on.
    """

    branch: int
    length: int
    logprob: float
    perturbed: float
    last: Candidate | None = None


class Child(NamedTuple):
    """A kept continuation of a prefix by one token, not yet on a branch of its own; or a sequence finished before."""

    prefix: Prefix
    token: int | None


class StochasticBeamSearch(Strategy):
    """Draw `num_beams` different outputs from the distribution over whole outputs, without replacement.

    To draw k of all outputs without replacement, add Gumbel noise to the log-probability of each and take the k
    greatest. The greatest perturbed value below a prefix is distributed as the prefix's own log-probability plus
    noise, so the noise is drawn from the top down: children are perturbed on their own, then moved so that the
    greatest of them has their parent's value. A beam search over these values finds the k greatest of all outputs.
    The distribution is the processed one that sampling draws from.

    Worked example (test_stochastic_beam_worked_example): the prompt has the value 0, P = (0.5, 0.3, 0.2) and the noise
    is (0.2, 1.5, -0.4). On their own the children have ln P + noise = (-0.493, 0.296, -2.009). The greatest gets 0;
    a child of value g gets -ln(exp(-0) - exp(-0.296) + exp(-g)): (-0.638, 0, -2.043). Two beams keep tokens 1 and 0.

    Outputs stand in the order drawn, which is that of the perturbed values; a `score` is the log-probability of its
    output in the distribution drawn from. The first output is, token for token, what sampling draws with the same
    seed. A prefix above which all others are finished keeps its rank, and is committed: the first output streams at
    once, the others after it. The search ends when the first `num_return_sequences` are finished.

    One forward a token for all beams together.
    Source: Kool et al. 2019, Stochastic Beams and Where to Find Them, sections 3 and 4; appendix B.3 for the moving.
    """

    name = "stochastic_beam"
    space: Space = "logits"
    facts = StrategyFacts(
        samples="always",
        reads=frozenset({"num_beams"}),
        selected_by=("num_beams",),
        needs="`num_beams` above 1",
        is_met=has_beams,
        line_up={"stochastic_beam": {"num_beams": 4}},
        position=70,
    )

    def max_branches(self, config: Options) -> int:
        return config.num_beams

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns `num_return_sequences` hypotheses in the order drawn, fewer if there are."""
        width, outputs = context.config.num_beams, context.config.num_return_sequences
        beams, fresh, num_finished = [Prefix(ROOT, 0, 0.0, 0.0)], 1, 0
        turn = Turn(asks=(Perturbed(ROOT, width),))
        while True:
            reply = yield turn
            children = best_children(beams, reply, width)
            moves, beams, fresh = settle(children, beams, fresh)
            if all(beam.last for beam in beams[:outputs]):
                return [hypothesis(beam) for beam in beams[:outputs]]
            commits, num_finished = certain(beams[:outputs], num_finished)
            asks = (Perturbed(beam.branch, width, lane=rank) for rank, beam in enumerate(beams) if not beam.last)
            turn = Turn(moves=moves, asks=tuple(asks), commits=commits)


def best_children(beams: list[Prefix], reply: Reply, width: int) -> list[Child]:
    """Return the `width` greatest of all continuations and finished sequences; equal ones in the order of the beams.

    reply: a row for each beam that goes on.
    """
    rows = iter(reply)
    children: list[Child] = []
    for beam in beams:
        if beam.last:
            children.append(Child(beam, None))
            continue
        row = next(rows)
        own = [beam.logprob + value - row.log_norm for value in row.perturbed]
        for candidate, perturbed in zip(row.candidates, conditioned(own, beam.perturbed), strict=True):
            logprob = beam.logprob + candidate.score - row.log_norm
            last = candidate if candidate.ends else None
            children.append(Child(Prefix(beam.branch, beam.length, logprob, perturbed, last), candidate.token))
    return sorted(children, key=lambda child: -child.prefix.perturbed)[:width]


def conditioned(values: Sequence[float], greatest: float) -> list[float]:
    """Return perturbed values as if their maximum had come out as `greatest`; the order stays.

    Equal to -log(exp(-greatest) - exp(-max(values)) + exp(-value)), without overflow or cancellation.

    Args:
        values: of all children of a prefix, or of those with the greatest values, best first.
    """
    return [_moved(value, values[0], greatest) for value in values]


def _moved(value: float, highest: float, greatest: float) -> float:
    if value == highest:
        return greatest
    shift = greatest - value + _log1mexp(value - highest)
    return greatest - max(0.0, shift) - math.log1p(math.exp(-abs(shift)))


def _log1mexp(x: float) -> float:
    """Return log(1 - exp(x)) for x < 0."""
    return math.log(-math.expm1(x)) if x > -math.log(2) else math.log1p(-math.exp(x))


def settle(children: list[Child], beams: list[Prefix], fresh: int) -> tuple[tuple[Move, ...], list[Prefix], int]:
    """Return the moves that put every child which goes on onto a branch, the new beams, and the next unused number.

    The first of a beam's children stays on its branch, the others fork from it.
    """
    live = {child.prefix.branch for child in children if not child.prefix.last}
    moves: list[Move] = [Drop(beam.branch) for beam in beams if not beam.last and beam.branch not in live]
    taken: set[int] = set()
    grown: list[Prefix] = []
    for prefix, token in children:
        if prefix.last or token is None:
            grown.append(prefix)
            continue
        branch = prefix.branch
        if branch in taken:
            moves.append(Fork(branch, fresh))
            branch, fresh = fresh, fresh + 1
        taken.add(branch)
        moves.append(Extend(branch, (token,)))
        grown.append(prefix._replace(branch=branch, length=prefix.length + 1))
    return tuple(moves), grown, fresh


def certain(beams: list[Prefix], num_finished: int) -> tuple[tuple[Commit, ...], int]:
    """Return what can no longer change, and how many outputs are finished by it.

    A prefix's best continuation has the prefix's own value and the others less, so a prefix can only be overtaken by
    continuations of one that goes on above it.

    Args:
        beams: those that are to be returned, in order.
        num_finished: how many of the first were committed as finished before.
    """
    commits: list[Commit] = []
    for output, beam in enumerate(beams[num_finished:], num_finished):
        if not beam.last:
            commits.append(Commit(output, beam.branch, beam.length))
            break
        commits.append(Commit(output, beam.branch, beam.length, hypothesis(beam)))
    return tuple(commits), num_finished + sum(commit.finished is not None for commit in commits)


def hypothesis(beam: Prefix) -> Hypothesis:
    return Hypothesis(beam.branch, beam.length, beam.last, beam.logprob)

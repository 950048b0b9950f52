"""Stochastic beam search: draws several different whole outputs, without replacement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.beams import has_beams
from unspool.strategy_facts import StrategyFacts
from unspool.types import ROOT, Candidate, Commit, Drop, Extend, Fork, GumbelTopK, Hypothesis, Move, Reply, Space, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class Prefix(NamedTuple):
    """A beam: the common prefix of a set of sequences, or one finished sequence.

    branch, length: the first `length` tokens of the branch are its tokens, without `last`.
    logprob: its log-probability.
    perturbed: the greatest perturbed log-probability (log-probability plus noise) of all sequences with this prefix.
    last: the token that ends it; None while it is live.
    """

    branch: int
    length: int
    logprob: float
    perturbed: float
    last: Candidate | None = None


class Child(NamedTuple):
    """A continuation of a prefix by one token, not yet on its own branch; or an already finished sequence."""

    prefix: Prefix
    token: int | None


class StochasticBeamSearch(Strategy):
    """Stochastic beam search: draw `num_beams` different outputs from the distribution over whole outputs.

    To draw k of all outputs without replacement, add Gumbel noise to the log-probability of each and take the k
    greatest (Gumbel top-k). The greatest perturbed value of all sequences with a prefix is distributed as the prefix's
    own log-probability plus noise. So the noise is drawn top down: perturb each child by itself, then shift all
    children so that the greatest equals the parent's value. A beam search over these values finds the k greatest of
    all outputs. The distribution is the processed distribution that sampling also draws from.

    Worked example (test_stochastic_beam_worked_example): the prompt has the value 0, P = (0.5, 0.3, 0.2) and the noise
    is (0.2, 1.5, -0.4). By themselves the children have ln P + noise = (-0.493, 0.296, -2.009). The greatest gets 0;
    a child of value g gets -ln(exp(-0) - exp(-0.296) + exp(-g)): (-0.638, 0, -2.043). Two beams keep tokens 1 and 0.

    Outputs are in the order drawn: by perturbed value, greatest first. A `score` is the output's log-probability in the
    processed distribution. The first output equals, token for token, the output of sampling with the same seed. If all
    prefixes ranked above a prefix are finished, it keeps its rank and is committed. So the first output streams at
    once, and the others after it. The search ends when the first `num_return_sequences` outputs are finished.

    Cost: one forward pass per token for all beams together.
    Source: Kool et al. 2019, Stochastic Beams and Where to Find Them, sections 3 and 4; appendix B.3 for the shift.
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
        """Run the conversation; returns `num_return_sequences` hypotheses in the order drawn, or all if fewer exist."""
        width, outputs = context.config.num_beams, context.config.num_return_sequences
        beams, fresh, num_finished = [Prefix(ROOT, 0, 0.0, 0.0)], 1, 0
        turn = Turn(asks=(GumbelTopK(ROOT, width),))
        while True:
            reply = yield turn
            children = best_children(beams, reply, width)
            moves, beams, fresh = settle(children, beams, fresh)
            if all(beam.last for beam in beams[:outputs]):
                return [hypothesis(beam) for beam in beams[:outputs]]
            commits, num_finished = certain(beams[:outputs], num_finished)
            asks = (GumbelTopK(beam.branch, width, lane=rank) for rank, beam in enumerate(beams) if not beam.last)
            turn = Turn(moves=moves, asks=tuple(asks), commits=commits)


def best_children(beams: list[Prefix], reply: Reply, width: int) -> list[Child]:
    """Return the `width` greatest of all continuations and finished sequences, greatest first.

    Ties keep the order of the beams.

    Args:
        reply: one row per live beam.
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
    """Return the perturbed values, conditioned on a maximum of `greatest`; the order stays.

    Each result equals -log(exp(-greatest) - exp(-max(values)) + exp(-value)), without overflow or cancellation.

    Args:
        values: of all children of a prefix, or of the children with the greatest values; greatest first.
        greatest: the parent's perturbed value.
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
    """Return the moves that put every live child on a branch, the new beams, and the next unused branch number.

    The first of a beam's children stays on its branch; the others fork from it.
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
    """Return commits for all tokens that can no longer change, and the number of finished outputs.

    A prefix's best continuation keeps the prefix's value, and the other continuations have less. So only continuations
    of a live prefix with a higher rank can overtake a prefix.

    Args:
        beams: the beams of the outputs to return, in order.
        num_finished: the number of first outputs that were already committed as finished.
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

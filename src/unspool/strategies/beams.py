"""Beams and finished hypotheses: the parts that all beam search strategies share."""

from __future__ import annotations

from collections.abc import Iterable
from operator import attrgetter
from typing import Literal, NamedTuple, Self

from unspool.protocols import Context
from unspool.strategy_facts import Values
from unspool.types import Candidate, Drop, Extend, Fork, Hypothesis, Move, Reply

BEAM_OPTIONS = frozenset({"num_beams", "num_return_sequences", "length_penalty", "early_stopping"})
"""Options that every strategy reads if it ranks finished beams by length-normalized scores."""


def has_beams(values: Values, assistant: bool) -> bool:
    """Return True if there are several beams."""
    return bool(values["num_beams"] > 1)


def num_candidates(context: Context, width: int) -> int:
    """Return the number of continuations per step that leaves `width` beams live.

    The `width` best continuations can all end, each with any end-of-sequence token. So each such token needs `width`
    more continuations.
    """
    return max(2, 1 + len(context.eos_token_ids)) * width


class Beam(NamedTuple):
    """A live branch with its output tokens and the sum of its scores."""

    branch: int
    tokens: tuple[int, ...]
    total: float


class Choice(NamedTuple):
    """One continuation of a beam."""

    beam: Beam
    candidate: Candidate
    total: float

    @property
    def grown(self) -> Beam:
        """The beam after this continuation, still on its parent's branch."""
        return Beam(self.beam.branch, (*self.beam.tokens, self.candidate.token), self.total)


class FinishedBeams:
    """The pool of the `size` best finished hypotheses, best first; ties stay in the order of arrival.

    Args:
        size: the most hypotheses to keep, at least 1.
        length_penalty: the score is total / length ** length_penalty; length counts the ending token. 0 is off.
        early_stopping: when the search ends; see BeamSearch.
        longest: the maximum length in tokens, for early_stopping="never".
    """

    def __init__(
        self, size: int, *, length_penalty: float, early_stopping: bool | Literal["never"], longest: int
    ) -> None:
        self.hypotheses: list[Hypothesis] = []
        self.paths: list[tuple[int, ...]] = []
        self.open = True
        self.size, self._penalty = size, length_penalty
        self._early_stopping, self._longest = early_stopping, longest

    @classmethod
    def of(cls, context: Context, size: int) -> Self:
        """Return an empty pool with the request's options."""
        config = context.config
        return cls(
            size,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            longest=context.max_new_tokens,
        )

    def finish_and_filter(self, choices: list[Choice]) -> list[Choice]:
        """Add the hypotheses that a step finishes, and return the continuations that stay live, best first.

        Only the first `size` choices can finish a hypothesis. The best `size` choices that do not end stay live. The
        list is empty if the pool is done.
        """
        self.add(choice for choice in choices[: self.size] if choice.candidate.ends)
        running = by_total(choice for choice in choices if not choice.candidate.ends)[: self.size]
        if running:
            self.update_early_stop(running[0].grown)
        return [] if self.done else running

    @property
    def full(self) -> bool:
        return len(self.hypotheses) == self.size

    def add(self, choices: Iterable[Choice]) -> None:
        """Add the choices of one step as finished hypotheses, and keep the `size` best.

        A pool that is done ignores them. With early_stopping=True, a pool that fills up in this step still ranks all.
        """
        if self.done:
            return
        for choice in choices:
            beam, score = choice.beam, self.score(choice.grown)
            place = sum(score <= hypothesis.score for hypothesis in self.hypotheses)
            self.hypotheses.insert(place, Hypothesis(beam.branch, len(beam.tokens), choice.candidate, score))
            self.paths.insert(place, choice.grown.tokens)
        del self.hypotheses[self.size :], self.paths[self.size :]

    def score(self, beam: Beam) -> float:
        """Return the beam's length-normalized score, as if it ended at its present length."""
        score: float = beam.total / len(beam.tokens) ** self._penalty
        return score

    def keep(self, beginning: tuple[int, ...]) -> int:
        """Remove the hypotheses that do not begin with these tokens; returns the number removed."""
        before = len(self.paths)
        kept = [index for index, path in enumerate(self.paths) if path[: len(beginning)] == beginning]
        self.hypotheses[:] = [self.hypotheses[index] for index in kept]
        self.paths[:] = [self.paths[index] for index in kept]
        return before - len(kept)

    def update_early_stop(self, best: Beam) -> None:
        """Close the pool if the best live beam can no longer beat the worst hypothesis."""
        if not self.full:
            return
        longest = self._early_stopping == "never" and self._penalty > 0
        length = self._longest if longest else len(best.tokens)
        self.open &= best.total / length**self._penalty > self.hypotheses[-1].score

    @property
    def done(self) -> bool:
        return not self.open or (self.full and self._early_stopping is True)


def continuations(beams: list[Beam], reply: Reply) -> list[Choice]:
    """Return every candidate of every beam, beam by beam."""
    return [
        Choice(beam, candidate, beam.total + candidate.score)
        for beam, row in zip(beams, reply, strict=True)
        for candidate in row.candidates
    ]


def by_total(choices: Iterable[Choice]) -> list[Choice]:
    """Return the choices best first; ties keep their order: the better beam first, then the lower token."""
    return sorted(choices, key=attrgetter("total"), reverse=True)


def continue_with(
    beams: list[Beam], running: list[Choice], next_branch: int
) -> tuple[tuple[Move, ...], list[Beam], int]:
    """Return the moves to the chosen continuations, the new beams, and the next unused branch number.

    The first continuation of a beam stays on its branch; the others fork from it.
    """
    chosen = {choice.beam.branch for choice in running}
    moves: list[Move] = [Drop(beam.branch) for beam in beams if beam.branch not in chosen]
    grown: list[Beam] = []
    for choice in running:
        beam = choice.grown
        if any(other.branch == beam.branch for other in grown):
            moves.append(Fork(beam.branch, next_branch))
            beam, next_branch = beam._replace(branch=next_branch), next_branch + 1
        moves.append(Extend(beam.branch, (choice.candidate.token,), choice.candidate.score))
        grown.append(beam)
    return tuple(moves), grown, next_branch


def shared_length(paths: list[tuple[int, ...]], known: int) -> int:
    """Return the length of the common prefix of all paths; the first `known` tokens are known to be equal."""
    shortest = min(map(len, paths))
    while known < shortest and all(path[known] == paths[0][known] for path in paths):
        known += 1
    return known

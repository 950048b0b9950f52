"""Beams: the partial and the finished sequences of a beam search, shared by all strategies that search with beams."""

from __future__ import annotations

from collections.abc import Iterable
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
    """Return how many continuations a step must look at so that `width` beams can go on.

    The `width` best can all end, each with any end-of-sequence token. So `width` more are needed per way to end.
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
        """The beam that goes on with it, on the branch it comes from."""
        return Beam(self.beam.branch, (*self.beam.tokens, self.candidate.token), self.total)


class FinishedBeams:
    """The best finished hypotheses, at most `size`, best first; equal ones in the order they came.

    Args:
        size: how many are kept.
        length_penalty: a total is divided by the number of generated tokens, the ending one counted, to this power.
        early_stopping, longest: see BeamSearch.
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
        """Return an empty pool under the request's options."""
        config = context.config
        return cls(
            size,
            length_penalty=config.length_penalty,
            early_stopping=config.early_stopping,
            longest=context.max_new_tokens,
        )

    def finish_and_filter(self, choices: list[Choice]) -> list[Choice]:
        """Take in what a step has finished, close if nothing better can come, and return the beams-to-be, best first.

        Only the first `size` choices finish anything; of those that end nothing, the best `size` go on, and none does
        once the pool is done.
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
        """Take in the sequences that a step has finished, as far as they are good enough and the pool takes any.

        With early_stopping=True a pool that was full before the step takes none; one that the step fills takes all.
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
        """Return what the beam would compete with if it ended as it stands."""
        score: float = beam.total / len(beam.tokens) ** self._penalty
        return score

    def keep(self, beginning: tuple[int, ...]) -> int:
        """Forget the hypotheses that do not begin with these tokens; returns how many these were."""
        before = len(self.paths)
        kept = [index for index, path in enumerate(self.paths) if path[: len(beginning)] == beginning]
        self.hypotheses[:] = [self.hypotheses[index] for index in kept]
        self.paths[:] = [self.paths[index] for index in kept]
        return before - len(kept)

    def update_early_stop(self, best: Beam) -> None:
        """Close the pool once the best live beam can no longer do better than its worst hypothesis."""
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
    """Return choices best first; equal ones keep their order: the better beam, then the lower token, comes first."""
    return sorted(choices, key=lambda choice: -choice.total)


def continue_with(
    beams: list[Beam], running: list[Choice], next_branch: int
) -> tuple[tuple[Move, ...], list[Beam], int]:
    """Return the moves that turn the beams into the chosen ones, those beams, and the next unused branch number.

    The first continuation of a beam stays on its branch, the others fork from it.
    """
    chosen = {choice.beam.branch for choice in running}
    moves: list[Move] = [Drop(beam.branch) for beam in beams if beam.branch not in chosen]
    grown: list[Beam] = []
    for choice in running:
        beam = choice.grown
        if any(other.branch == beam.branch for other in grown):
            moves.append(Fork(beam.branch, next_branch))
            beam, next_branch = beam._replace(branch=next_branch), next_branch + 1
        moves.append(Extend(beam.branch, (choice.candidate.token,)))
        grown.append(beam)
    return tuple(moves), grown, next_branch


def shared_length(paths: list[tuple[int, ...]], known: int) -> int:
    """Return how many first tokens all paths share, at least `known`."""
    shortest = min(map(len, paths))
    while known < shortest and all(path[known] == paths[0][known] for path in paths):
        known += 1
    return known

"""Beam search: keeps the best partial sequences side by side, and the best finished ones apart."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, Self

from unspool.config import GenerationConfig
from unspool.protocols import Context, Conversation
from unspool.strategies.lookahead import LookAhead, shared_length
from unspool.types import ROOT, Ask, Candidate, Commit, Drop, Extend, Fork, Hypothesis, Move, Reply, Space, Top, Turn


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


class Pool:
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

    def take(self, choices: list[Choice]) -> list[Choice]:
        """Take in what a step has finished, close if nothing better can come, and return the beams-to-be, best first.

        Only the first `size` choices finish anything; of those that end nothing, the best `size` go on, and none does
        once the pool is done.
        """
        self.add(choice for choice in choices[: self.size] if choice.candidate.ends)
        going = by_total(choice for choice in choices if not choice.candidate.ends)[: self.size]
        if going:
            self.close_to(going[0].grown)
        return [] if self.done else going

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

    def close_to(self, best: Beam) -> None:
        """Close the pool once the best live beam can no longer do better than its worst hypothesis."""
        if not self.full:
            return
        longest = self._early_stopping == "never" and self._penalty > 0
        length = self._longest if longest else len(best.tokens)
        self.open &= best.total / length**self._penalty > self.hypotheses[-1].score

    @property
    def done(self) -> bool:
        return not self.open or (self.full and self._early_stopping is True)


class BeamSearch:
    """Extend the `num_beams` best partial sequences by all tokens and keep the `num_beams` best of what comes.

    A token that ends a sequence finishes it only from among the `num_beams` best continuations of a step. Finished
    sequences compete by score / length ** length_penalty. `early_stopping`: True ends with `num_beams` finished ones;
    False when the best live beam, at its present length, scores no better than the worst finished one; "never" when
    it could not even at the longest length.

    Worked example (test_beam_search_worked_example), P(next | newest), prompt [a], 2 beams, length_penalty 0:

        a: b 0.6, c 0.4      b: a 0.3, c 0.3, <end> 0.4      c: b 0.1, <end> 0.9

        step 1   beams a b (0.60), a c (0.40)
        step 2   a c <end> 0.36 and a b <end> 0.24 are the two best continuations: both finish; best first

    Greedy takes b first and ends with 0.24. What all live beams and the best finished hypothesis share is committed;
    `lookahead_steps` commits more, earlier (LookAhead). One forward a token for all beams together. Outputs stand best
    first.
    Source: transformers 5, GenerationMixin._beam_search; Sutskever et al. 2014, section 3.2.
    """

    name = "beam"
    space: Space = "log_probs"
    bears_dead_ends = True

    def max_branches(self, config: GenerationConfig) -> int:
        return config.num_beams

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns `num_return_sequences` hypotheses, best first."""
        config, width = context.config, context.config.num_beams
        looked_at = max(2, 1 + len(context.eos_token_ids)) * width
        pool = Pool.of(context, width)
        ahead = LookAhead(config.lookahead_steps, outputs=config.num_return_sequences)
        beams, fresh, committed = [Beam(ROOT, (), 0.0)], 1, 0
        reply = yield Turn(asks=self.asks(beams, looked_at))
        while True:
            going, note = ahead.agreeing(pool.take(self.choices(beams, reply, looked_at)), pool)
            if not going:
                return pool.hypotheses[: config.num_return_sequences]
            moves, beams, fresh = continue_with(beams, going, fresh)
            committed = shared_length([beam.tokens for beam in beams] + pool.paths[:1], committed)
            commits = (Commit(0, beams[0].branch, committed),) if committed else ()
            reply = yield Turn(moves=moves, asks=self.asks(beams, looked_at), commits=commits, note=note)

    def asks(self, beams: list[Beam], count: int) -> tuple[Ask, ...]:
        """Return what is asked about each beam, in order of rank."""
        return tuple(Top(beam.branch, count) for beam in beams)

    def choices(self, beams: list[Beam], reply: Reply, count: int) -> list[Choice]:
        """Return the continuations that a step looks at, in the order in which they may finish beams: best first."""
        return by_total(continuations(beams, reply))[:count]


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


def continue_with(beams: list[Beam], going: list[Choice], fresh: int) -> tuple[tuple[Move, ...], list[Beam], int]:
    """Return the moves that turn the beams into the chosen ones, those beams, and the next unused branch number.

    The first continuation of a beam stays on its branch, the others fork from it.
    """
    chosen = {choice.beam.branch for choice in going}
    moves: list[Move] = [Drop(beam.branch) for beam in beams if beam.branch not in chosen]
    grown: list[Beam] = []
    for choice in going:
        beam = choice.grown
        if any(other.branch == beam.branch for other in grown):
            moves.append(Fork(beam.branch, fresh))
            beam, fresh = beam._replace(branch=fresh), fresh + 1
        moves.append(Extend(beam.branch, (choice.candidate.token,)))
        grown.append(beam)
    return tuple(moves), grown, fresh

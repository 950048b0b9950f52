"""Draft tokens for speculative decoding, per output of a request, and the draft model that proposes them.

Owns: the draft branches and the length of each draft. Does not know: how drafts are verified.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Protocol, TypeAlias

from unspool.protocols import Context
from unspool.types import DRAFT, Ask, Commit, Drop, Extend, Fork, Keep, Move, Reply, Row, Sample, Top, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options

Proposals: TypeAlias = dict[int, tuple[int, ...]]
"""Drafted tokens: output index --> tokens; an output without a draft is absent."""


@dataclass(slots=True)
class DraftedOutput:
    """One unfinished output: its verified tokens and the sum of their log-probabilities."""

    output: int
    tokens: list[int] = field(default_factory=list)
    score: float = 0.0


class TurnBuilder:
    """Collects the moves, commits and notes of the next Turn."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Remove all collected moves, commits, notes and tokens."""
        self.moves: list[Move] = []
        self.commits: list[Commit] = []
        self.notes: list[str] = []
        self._extensions: dict[int, list[int]] = {}

    def extend(self, branch: int, tokens: Sequence[int]) -> None:
        """Append the tokens to the branch, after those already collected for it."""
        self._extensions.setdefault(branch, []).extend(tokens)

    def turn(self, asks: Sequence[Ask]) -> Turn:
        """Return a Turn with everything collected and the questions, and clear the agenda."""
        extensions = (Extend(branch, tuple(tokens)) for branch, tokens in self._extensions.items() if tokens)
        turn = Turn(
            moves=(*self.moves, *extensions),
            asks=tuple(asks),
            commits=tuple(self.commits),
            note="; ".join(self.notes) or None,
        )
        self.clear()
        return turn


class Drafter(Protocol):
    """A method that drafts the model's next tokens."""

    def propose(self, live: Sequence[DraftedOutput], turn_builder: TurnBuilder) -> Generator[Turn, Reply, Proposals]:
        """Return the drafts for the unfinished outputs; a draft model is asked through the yielded Turns.

        A draft leaves room for one more token after it. It contains no token that ends its output, because
        verification asks for the model's choice at that position anyway.
        """
        ...


def ask_one(config: Options, branch: int, output: int, back: int = 0) -> Ask:
    """Return the question for one next token: a sample if the request samples, else the best token."""
    return Sample(branch, back=back, output=output) if config.do_sample else Top(branch, 1, back=back)


@dataclass(slots=True)
class Draft:
    """One output's branch on the draft model.

    branch      [0, base) tokens verified before this draft | [base, length) the guesses fed, all but the newest
    count       the most tokens of the draft
    """

    branch: int
    count: int
    base: int = 0
    length: int = 0
    guesses: list[int] = field(default_factory=list)

    def learn(self, verified: Sequence[int], schedule: str) -> int:
        """Update the draft length after verification.

        Args:
            verified: the output's tokens.
            schedule: "constant" keeps the length. Otherwise the next draft is 2 tokens longer if all guesses were
                accepted, else 1 shorter.

        Returns:
            The number of first tokens that the branch and the output have in common.
        """
        pairs = zip(self.guesses, verified[self.base :], strict=False)
        accepted = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self.guesses and schedule != "constant":
            self.count = self.count + 2 if accepted == len(self.guesses) else max(1, self.count - 1)
        return min(self.length, self.base + accepted)


class DraftModel:
    """Drafts with a smaller model: its greedy choice, or its sample under the noise of the real output.

    The first draft has `num_assistant_tokens` tokens. A draft ends early before a token that ends the output or is
    outside the target's vocabulary, and if the processors forbid every token. It also ends after a token with a
    probability below `assistant_confidence_threshold`. An output continues without drafts if the draft model's context
    is full, or if it contains a token outside the draft model's vocabulary.

    Args:
        context: of a request with a draft model.
    """

    def __init__(self, context: Context) -> None:
        assert context.draft is not None, "the request needs a draft model"
        self._context, self._info, self._config = context, context.draft, context.config
        self._drafts: dict[int, Draft] | None = None

    def propose(self, live: Sequence[DraftedOutput], turn_builder: TurnBuilder) -> Generator[Turn, Reply, Proposals]:
        """Return the drafts for the unfinished outputs; see Drafter."""
        if self._drafts is None:
            self._drafts = yield from self._open(live, turn_builder)
        self._close_all_but(live, turn_builder)
        drafting = [(writing.output, self._drafts[writing.output]) for writing in self._prepared(live, turn_builder)]
        started = drafting
        while drafting:
            reply = yield turn_builder.turn([ask_one(self._config, draft.branch, output) for output, draft in drafting])
            drafting = [
                (output, draft)
                for (output, draft), row in zip(drafting, reply, strict=True)
                if self._goes_on(draft, row)
            ]
            for _, draft in drafting:
                turn_builder.extend(draft.branch, draft.guesses[-1:])
                draft.length += 1
        return {output: tuple(draft.guesses) for output, draft in started if draft.guesses}

    def _open(
        self, live: Sequence[DraftedOutput], turn_builder: TurnBuilder
    ) -> Generator[Turn, Reply, dict[int, Draft]]:
        """Open a draft branch per output that can have drafts; several fork from one after the prompt's pass."""
        prompt, count = self._context.prompt, self._config.num_assistant_tokens
        possible = [each for each in live if self._room(len(each.tokens)) > 0 and self._has((*prompt, *each.tokens))]
        if not possible:
            turn_builder.moves.append(Drop(DRAFT))
        if len(possible) > 1:
            yield turn_builder.turn([Top(DRAFT, 1)])
        drafts = {writing.output: Draft(DRAFT - rank, count) for rank, writing in enumerate(possible)}
        turn_builder.moves += [Fork(DRAFT, draft.branch) for draft in drafts.values() if draft.branch != DRAFT]
        return drafts

    def _close_all_but(self, live: Sequence[DraftedOutput], turn_builder: TurnBuilder) -> None:
        assert self._drafts is not None, "call _open first"
        going = {writing.output for writing in live}
        for output in [output for output in self._drafts if output not in going]:
            turn_builder.moves.append(Drop(self._drafts.pop(output).branch))

    def _prepared(self, live: Sequence[DraftedOutput], turn_builder: TurnBuilder) -> list[DraftedOutput]:
        """Bring the draft branches up to date with the verified tokens; returns the outputs that can have drafts."""
        assert self._drafts is not None, "call _open first"
        prepared = []
        for writing in live:
            draft = self._drafts.get(writing.output)
            if draft is None:
                continue
            agreed = draft.learn(writing.tokens, self._config.num_assistant_tokens_schedule)
            lacking = writing.tokens[agreed:]
            if self._room(len(writing.tokens)) < 1 or not self._has(lacking):
                turn_builder.moves.append(Drop(self._drafts.pop(writing.output).branch))
                continue
            if agreed < draft.length:
                turn_builder.moves.append(Keep(draft.branch, agreed))
            turn_builder.extend(draft.branch, lacking)
            draft.base = draft.length = len(writing.tokens)
            draft.guesses = []
            prepared.append(writing)
        return prepared

    def _goes_on(self, draft: Draft, row: Row) -> bool:
        """Append the row's token to the draft if it is usable; returns True if the draft continues after it."""
        if not row.candidates:
            return False  # the processors forbid every token of the draft model
        guess = row.candidates[0]
        if guess.ends or guess.token >= self._context.info.vocab_size:
            return False
        draft.guesses.append(guess.token)
        if math.exp(guess.score - row.log_norm) < self._config.assistant_confidence_threshold:
            return False
        return len(draft.guesses) < min(draft.count, self._room(draft.base))

    def _room(self, length: int) -> int:
        """Return the number of guesses that can follow an output of this length; none can follow if 0 or less."""
        room = self._context.max_new_tokens - length - 1
        if self._info.max_length is None:
            return room
        # The newest guess is not fed, so it needs no position.
        return min(room, self._info.max_length - len(self._context.prompt) - length + 1)

    def _has(self, tokens: Sequence[int]) -> bool:
        """Return True if all tokens are in the draft model's vocabulary."""
        return all(token < self._info.vocab_size for token in tokens)

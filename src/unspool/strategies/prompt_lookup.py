"""Prompt lookup decoding: drafts the tokens that followed an earlier occurrence of the newest tokens."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence

from unspool.protocols import Context
from unspool.strategies.drafting import DraftedOutput, Proposals, TurnBuilder
from unspool.types import Reply, Turn


class NgramIndex:
    """An n-gram index that finds an earlier occurrence of a sequence's newest tokens.

    Each lookup takes one dictionary access per n-gram length. Each token adds one entry per length.

    Args:
        longest: the longest n-gram to look for, in tokens, at least 1.
        tokens: the sequence so far.
    """

    def __init__(self, longest: int, tokens: Iterable[int] = ()) -> None:
        self._longest = longest
        self._tokens: list[int] = []
        self._behind: dict[tuple[int, ...], int] = {}
        self.extend(tokens)

    def __len__(self) -> int:
        return len(self._tokens)

    def copy(self) -> NgramIndex:
        """Return an independent copy of the index."""
        twin = NgramIndex(self._longest)
        twin._tokens, twin._behind = self._tokens.copy(), self._behind.copy()
        return twin

    def extend(self, tokens: Iterable[int]) -> None:
        """Append tokens. An n-gram enters the index only after a token follows it, so it never finds itself."""
        for token in tokens:
            for run in self._newest_runs():
                self._behind[run] = len(self._tokens)
            self._tokens.append(token)

    def continuation(self, count: int) -> tuple[int, ...]:
        """Return `count` tokens that followed an earlier occurrence of the longest n-gram of newest tokens.

        The most recent occurrence counts. If its continuation reaches the end of the sequence, it repeats from its
        first token, so a loop continues at any length. Empty if even the newest token has not occurred before.
        """
        for run in self._newest_runs():
            start = self._behind.get(run)
            if start is not None:
                period = len(self._tokens) - start
                return tuple(self._tokens[start + index % period] for index in range(count))
        return ()

    def _newest_runs(self) -> list[tuple[int, ...]]:
        """Return the n-grams that end with the newest token, longest first."""
        end = len(self._tokens)
        return [tuple(self._tokens[end - length :]) for length in range(min(self._longest, end), 0, -1)]


class PromptLookup:
    """Prompt lookup: drafts the `prompt_lookup_num_tokens` tokens after an earlier occurrence of the newest tokens.

    Looks in the prompt and the output for the longest n-gram of newest tokens, at most `max_matching_ngram_size` long,
    that occurred before.

    Worked example (test_prompt_lookup_worked_example), n-grams of at most 2, drafts of 3 tokens:

        5 6 7 8 9 6 7      6 7 came before, followed by 8 9 6     draft 8 9 6
        5 6 7 8 9 6        9 6 did not, 6 did, followed by 7 8 9  draft 7 8 9
        1 2 1 2            1 2 came before, followed by 1 2       draft 1 2 1: the continuation repeats itself

    transformers continues the first occurrence instead of the most recent one. The output is the same.
    Source: Saxena 2023, Prompt Lookup Decoding; transformers' PromptLookupCandidateGenerator.

    Args:
        context: of a request with `prompt_lookup_num_tokens`.
    """

    def __init__(self, context: Context) -> None:
        count = context.config.prompt_lookup_num_tokens
        assert count is not None, "prompt lookup must be on"
        self._count = count
        self._context = context
        self._prompt = NgramIndex(context.config.max_matching_ngram_size, context.prompt)
        self._indexes: dict[int, NgramIndex] = {}

    def propose(self, live: Sequence[DraftedOutput], turn_builder: TurnBuilder) -> Generator[Turn, Reply, Proposals]:
        """Return the drafts for the unfinished outputs, without a Turn; see Drafter."""
        yield from ()
        return {writing.output: guesses for writing in live if (guesses := self._guesses(writing))}

    def _guesses(self, writing: DraftedOutput) -> tuple[int, ...]:
        index = self._indexes.get(writing.output)
        if index is None:
            index = self._indexes[writing.output] = self._prompt.copy()
        index.extend(writing.tokens[len(index) - len(self._prompt) :])
        room = self._context.max_new_tokens - len(writing.tokens) - 1
        found = index.continuation(min(self._count, room))
        ends = (place for place, token in enumerate(found) if token in self._context.eos_token_ids)
        return found[: next(ends, len(found))]

"""N-gram blocking: processors that forbid repeated n-grams.

Owns: no_repeat_ngram_size, encoder_no_repeat_ngram_size. Does not know: scores outside the cells it forbids.

An index maps each (n - 1)-gram to the tokens that followed it. The prompt's index is built once and shared by all
branches. The output's index grows by one entry per token, so a step costs O(1) and a fork O(output).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

import numpy as np
import torch

from unspool.processors.cells import Ids, cells_of
from unspool.processors.history import recent
from unspool.processors.rows import FORBIDDEN
from unspool.protocols import Context, Processor, RowKey

Gram: TypeAlias = tuple[int, ...]
Followers: TypeAlias = Mapping[Gram, tuple[int, ...]]


def followers_of(tokens: Sequence[int], size: int, vocab_size: int) -> dict[Gram, tuple[int, ...]]:
    """Return the distinct tokens below `vocab_size` that followed each (size - 1)-gram, in order of appearance."""
    found: dict[Gram, dict[int, None]] = {}
    for end in range(size - 1, len(tokens)):
        if tokens[end] < vocab_size:
            found.setdefault(tuple(tokens[end + 1 - size : end]), {})[tokens[end]] = None
    return {gram: tuple(followers) for gram, followers in found.items()}


def _forbid(banned: Iterable[tuple[int, ...]], scores: torch.Tensor) -> torch.Tensor:
    tokens: list[Ids] = [np.asarray(row, dtype=np.int64) for row in banned]
    if any(len(row) for row in tokens):
        cells = cells_of(tokens, scores)
        scores[cells.rows, cells.tokens] = FORBIDDEN
    return scores


@dataclass(slots=True)
class GramIndex:
    """The n-grams of one branch. newest: its last size - 1 tokens. prompt: shared and constant. output: its own."""

    size: int
    vocab_size: int
    newest: Gram
    prompt: Followers
    output: dict[Gram, tuple[int, ...]] = field(default_factory=dict)


class NoRepeatNgram(Processor):
    """Forbid each token that would complete an n-gram of prompt and output a second time. Off at None and 0.

    Worked example: after 5 6 7 5 6 with no_repeat_ngram_size=3 token 7 is forbidden.

    Source: Paulus et al. 2017; fairseq.
    """

    name = "no_repeat_ngram_size"

    def start(self, context: Context) -> GramIndex | None:
        """Return the n-grams of the prompt, in O(prompt); None if it is off."""
        size, vocab_size = context.config.no_repeat_ngram_size, context.info.vocab_size
        if not size:
            return None
        prompt = followers_of(context.prompt, size, vocab_size)
        return GramIndex(size, vocab_size, recent(context.prompt, size - 1), prompt)

    def advance(self, state: GramIndex, token: int) -> GramIndex:
        """Add the n-gram that ends with the token, in place."""
        if len(state.newest) == state.size - 1 and token < state.vocab_size:
            state.output[state.newest] = (*state.output.get(state.newest, ()), token)
        state.newest = recent((*state.newest, token), state.size - 1)
        return state

    def fork(self, state: GramIndex) -> GramIndex:
        """Return a copy that shares the prompt's n-grams."""
        return GramIndex(state.size, state.vocab_size, state.newest, state.prompt, state.output.copy())

    def apply(self, states: Sequence[GramIndex], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with completions of known n-grams forbidden in place. scores: [rows, vocab]"""
        return _forbid((s.prompt.get(s.newest, ()) + s.output.get(s.newest, ()) for s in states), scores)


class SourceGrams(NamedTuple):
    """The n-grams of the source, and the last size - 1 tokens of the branch."""

    size: int
    newest: Gram
    followers: Followers


class EncoderNoRepeatNgram(Processor):
    """Forbid each token that would complete an n-gram of the source. Off at None and 0.

    The source is the encoder's input, or the prompt of a decoder-only model.

    Worked example: with the source 5 6 7, the output 5 6 and encoder_no_repeat_ngram_size=3, token 7 is forbidden.

    Source: Roller et al. 2021 (BlenderBot).
    """

    name = "encoder_no_repeat_ngram_size"

    def start(self, context: Context) -> SourceGrams | None:
        """Return the n-grams of the source, in O(source); None if it is off."""
        size = context.config.encoder_no_repeat_ngram_size
        if not size:
            return None
        followers = followers_of(context.source_ids, size, context.info.vocab_size)
        return SourceGrams(size, recent(context.prompt, size - 1), followers)

    def advance(self, state: SourceGrams, token: int) -> SourceGrams:
        """Return the state after the token."""
        return state._replace(newest=recent((*state.newest, token), state.size - 1))

    def fork(self, state: SourceGrams) -> SourceGrams:
        """Return the state: it is immutable."""
        return state

    def apply(self, states: Sequence[SourceGrams], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with completions of the source's n-grams forbidden in place. scores: [rows, vocab]"""
        return _forbid((s.followers.get(s.newest, ()) for s in states), scores)

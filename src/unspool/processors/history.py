"""Sequence history of processors: token counts, the last tokens, and step countdowns.

Owns: `TokenCounts`, `recent`, `Countdown`. Does not know: scores.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unspool.processors.cells import Ids
from unspool.protocols import Processor

N = TypeVar("N", bound=np.generic)


def room_for(array: NDArray[N], size: int) -> NDArray[N]:
    """Return an array with more than `size` entries: the array itself, or a longer copy padded with zeros."""
    if size < len(array):
        return array
    grown = np.zeros(max(16, 2 * size), dtype=array.dtype)
    grown[: len(array)] = array
    return grown


class TokenCounts:
    """Counts per distinct token, in the order of first occurrence. Adding a token takes O(1).

    Args:
        tokens: the tokens so far.
        vocab_size: ids at or above it are not counted, because the model cannot produce them.
        exclude: ids that are not counted.
    """

    __slots__ = ("_counts", "_exclude", "_ids", "_places", "_vocab_size")

    def __init__(self, tokens: Iterable[int], vocab_size: int, exclude: frozenset[int] = frozenset()) -> None:
        self._vocab_size, self._exclude = vocab_size, exclude
        counts: dict[int, int] = {}
        for token in tokens:
            if token < vocab_size and token not in exclude:
                counts[token] = counts.get(token, 0) + 1
        self._places = {token: place for place, token in enumerate(counts)}
        self._ids = np.fromiter(counts, dtype=np.int64, count=len(counts))
        self._counts = np.fromiter(counts.values(), dtype=np.float32, count=len(counts))

    def add(self, token: int) -> None:
        """Count one more token."""
        if token >= self._vocab_size or token in self._exclude:
            return
        size = len(self._places)
        place = self._places.setdefault(token, size)
        if place == size:
            self._ids, self._counts = room_for(self._ids, size), room_for(self._counts, size)
            self._ids[place] = token
        self._counts[place] += 1

    def copy(self) -> TokenCounts:
        """Return an independent copy."""
        twin = TokenCounts.__new__(TokenCounts)
        twin._vocab_size, twin._exclude = self._vocab_size, self._exclude
        twin._places, twin._ids, twin._counts = self._places.copy(), self._ids.copy(), self._counts.copy()
        return twin

    @property
    def ids(self) -> Ids:
        """The distinct tokens; a view, valid until the next `add`."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float32]:
        """The count of each of `ids`; a view, valid until the next `add`."""
        return self._counts[: len(self._places)]


def recent(tokens: tuple[int, ...], length: int) -> tuple[int, ...]:
    """Return the last `length` tokens, or all if there are fewer. length: at least 0."""
    return tokens[max(0, len(tokens) - length) :]


class Countdown(NamedTuple):
    """The tokens of a processor, and the number of output tokens until it starts or stops; negative after that."""

    remaining: int
    tokens: Ids


class Counting(Processor):
    """Base of processors with a `Countdown` as state."""

    def advance(self, state: Countdown, token: int) -> Countdown:
        """Return the state after one more token."""
        return Countdown(state.remaining - 1, state.tokens)

    def fork(self, state: Countdown) -> Countdown:
        """Return the state: it is immutable."""
        return state

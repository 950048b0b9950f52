"""Suffix matching: a lookup table from token sequences to values, by the tokens before the last.

Owns: `SuffixTable` and `Matching`. Does not know: the use of a value, as a bias or a mask.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unspool.processors.cells import Ids
from unspool.processors.history import recent
from unspool.protocols import Processor

Sequences: TypeAlias = Iterable[tuple[tuple[int, ...], float]]


class SuffixTable:
    """Maps token sequences to values, to find those that the next token can complete.

    A lookup takes one hash per distinct sequence length, for any number of sequences. If two sequences are equal, the
    later value counts.

    Args:
        sequences: token sequences, at least one token in each, with their values.
    """

    __slots__ = ("_by_prefix", "_prefix_lengths", "longest_prefix", "single_ids", "single_values")

    def __init__(self, sequences: Sequences) -> None:
        values = dict(sequences)
        singles = {tokens[0]: value for tokens, value in values.items() if len(tokens) == 1}
        self.single_ids: Ids = np.fromiter(singles, dtype=np.int64, count=len(singles))
        self.single_values: NDArray[np.float32] = np.fromiter(singles.values(), dtype=np.float32, count=len(singles))
        self._by_prefix: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        for tokens, value in values.items():
            if len(tokens) > 1:
                self._by_prefix.setdefault(tokens[:-1], []).append((tokens[-1], value))
        self._prefix_lengths = sorted({len(prefix) for prefix in self._by_prefix})
        self.longest_prefix = max(self._prefix_lengths, default=0)

    def completions(self, newest: tuple[int, ...]) -> dict[int, float]:
        """Return the sum of values per token that completes a sequence of two or more tokens after `newest`."""
        found: dict[int, float] = {}
        for length in self._prefix_lengths:
            if length > len(newest):
                break
            for token, value in self._by_prefix.get(newest[len(newest) - length :], ()):
                found[token] = found.get(token, 0.0) + value
        return found


class Matching(NamedTuple):
    """A table, and the branch's last tokens, up to the longest prefix in the table."""

    table: SuffixTable
    newest: tuple[int, ...]


class SuffixMatching(Processor):
    """Base of processors with a `Matching` as state."""

    def advance(self, state: Matching, token: int) -> Matching:
        """Return the state after the token."""
        return Matching(state.table, recent((*state.newest, token), state.table.longest_prefix))

    def fork(self, state: Matching) -> Matching:
        """Return the state: it is immutable."""
        return state


def matching(sequences: Sequences, prompt: tuple[int, ...]) -> Matching:
    """Return the state after the prompt."""
    table = SuffixTable(sequences)
    return Matching(table, recent(prompt, table.longest_prefix))

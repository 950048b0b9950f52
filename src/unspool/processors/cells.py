"""Sparse access to (row, token) cells of a score matrix, for processors that change few tokens.

Owns: the conversion of one token list per row into flat row and token indices.
Does not know: the values written there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Ids: TypeAlias = NDArray[np.int64]

NO_IDS: Ids = np.empty(0, dtype=np.int64)


class Cells(NamedTuple):
    """Cells of a score matrix, row by row. rows, tokens: [cells] int64. lengths: number of cells per row."""

    rows: torch.Tensor
    tokens: torch.Tensor
    lengths: Ids

    def spread(self, numbers: Sequence[float]) -> torch.Tensor:
        """Return one number per row, repeated for each of the row's cells. --> [cells] float32"""
        return torch.from_numpy(np.repeat(np.asarray(numbers, dtype=np.float32), self.lengths)).to(self.rows.device)


def cells_of(tokens: Sequence[Ids], scores: torch.Tensor) -> Cells:
    """Return the cells of one array of token ids per row. Ids must be inside the vocabulary."""
    lengths = np.fromiter((len(t) for t in tokens), dtype=np.int64, count=len(tokens))
    rows = torch.from_numpy(np.repeat(np.arange(len(tokens)), lengths)).to(scores.device)
    flat = torch.from_numpy(np.concatenate(tokens) if len(tokens) else NO_IDS).to(scores.device)
    return Cells(rows, flat, lengths)


def floats_of(values: Sequence[NDArray[np.float32]], scores: torch.Tensor) -> torch.Tensor:
    """Return the values of all rows in the order of `cells_of`. --> [cells] float32"""
    return torch.from_numpy(np.concatenate(values)).to(scores.device)


def ids(tokens: int | Iterable[int] | None, vocab_size: int) -> Ids:
    """Return the distinct ids in ascending order, without ids outside the vocabulary."""
    if tokens is None:
        return NO_IDS
    given = [tokens] if isinstance(tokens, int) else list(tokens)
    found = np.asarray(sorted(set(given)), dtype=np.int64)
    return found[(found >= 0) & (found < vocab_size)]

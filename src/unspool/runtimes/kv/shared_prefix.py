"""Shared-prefix attention (Hydragen, cascade attention): the queries of a pass that read the same leading K/V.

Beams of one prompt, samples of one prompt and chats with one system prompt hold equal K/V in many slots. Attention of
single queries is limited by reading K/V. So the kernel reads the shared prefix of a group of queries in one slot: for
all but the first query, it is in the cache of the core then. This module decides the groups and reads no tensors.

Sources: Juravsky et al. 2024, "Hydragen: High-Throughput LLM Inference with Shared Prefixes", section 3.1; Ye et al.
2024, "Cascade Inference" (FlashInfer).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

from unspool.tuning import MIN_SAVED_BYTES, MIN_SHARED_PREFIX


class Sharing(Protocol):
    """A query of a pass. shared: the number of leading K/V that it has in common with the query before it."""

    @property
    def shared(self) -> int: ...


S = TypeVar("S", bound=Sharing)


class SharedPrefix(NamedTuple):
    """Queries [first, stop) of a pass, and the number of leading tokens that all of them share; 0 for no sharing."""

    first: int
    stop: int
    length: int

    @property
    def num_saved_keys(self) -> int:
        """Keys that are read once less, over all queries."""
        return (self.stop - self.first - 1) * self.length


def shared_prefixes(queries: Sequence[S], bytes_per_token: int) -> list[SharedPrefix]:
    """Cut the queries of a pass into consecutive groups that save the most reads.

    Args:
        queries: in the order of their rows; `shared` of the first one is ignored.
        bytes_per_token: of the K/V of one layer.

    Returns:
        The groups, in order. Queries that share too little are joined in groups of length 0.

    Example, without the limit on bytes: `shared` of 0, 200, 100, 230 gives [0, 2) with 200 tokens and [2, 4) with 230.
    These save 430 keys; one group [0, 4) with 100 tokens would save 300.
    """
    found: list[SharedPrefix] = []
    first = 0
    for index in range(1, len(queries) + 1):
        if index == len(queries) or queries[index].shared < MIN_SHARED_PREFIX:
            found += _best([query.shared for query in queries[first:index]], first)
            first = index
    groups: list[SharedPrefix] = []
    for group in found:
        if group.num_saved_keys * bytes_per_token >= MIN_SAVED_BYTES:
            groups.append(group)
        else:
            first = groups.pop().first if groups and not groups[-1].length else group.first
            groups.append(SharedPrefix(first, group.stop, 0))
    return groups


def _best(shared: Sequence[int], offset: int) -> list[SharedPrefix]:
    """Return the best groups of queries that share a prefix: one, or several if a cut at the shortest saves more."""
    stop = offset + len(shared)
    if len(shared) == 1:
        return [SharedPrefix(offset, stop, 0)]
    length, cut = min((length, place) for place, length in enumerate(shared) if place)
    whole = SharedPrefix(offset, stop, length)
    if all(each == length for each in shared[1:]):
        return [whole]
    parts = _best(shared[:cut], offset) + _best(shared[cut:], offset + cut)
    return parts if sum(part.num_saved_keys for part in parts) > whole.num_saved_keys else [whole]

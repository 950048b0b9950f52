"""Segments of a pass, and how they are grouped into shared attention calls.

All tokens of all feeds form one row of the pass; a segment is the part of one feed. Owns no tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from unspool.runtimes.kv.pool import SlotPool
from unspool.tuning import KEYS_PER_CALL_COST


class Segment(NamedTuple):
    """One feed in a pass: `width` tokens at rows [row, row + width), for positions [start, stop) of a slot.

    Attributes:
        pool: the pool of the slot.
        slot: index of the slot in its pool.
        start: position of the first token.
        width: number of tokens, at least 1.
        row: row of the first token in the pass.
        invariant: True if its queries must be attended one by one, so that other rows cannot change their bits.
        shared: the number of leading K/V that it has in common with the segment of the row before; 0 if not known.
    """

    pool: SlotPool
    slot: int
    start: int
    width: int
    row: int
    invariant: bool = False
    shared: int = 0

    @property
    def stop(self) -> int:
        """The position after the last token."""
        return self.start + self.width

    @property
    def rows(self) -> slice:
        """The rows of the segment in the pass."""
        return slice(self.row, self.row + self.width)

    def pieces(self, width: int) -> list[Segment]:
        """Cut the segment into consecutive segments of at most `width` tokens."""
        if self.width <= width:
            return [self]
        return [
            self._replace(start=self.start + offset, width=min(width, self.width - offset), row=self.row + offset)
            for offset in range(0, self.width, width)
        ]

    def sees_whole_prefix(self, window: int | None) -> bool:
        """Return True if the segment starts its sequence and each query sees all positions up to its own."""
        return self.start == 0 and (window is None or window >= self.stop)


class DecodeRun(NamedTuple):
    """One query per slot, for neighboring slots with nearly equal lengths: attended in one call.

    Attributes:
        pool: the pool of the slots.
        first: index of the first slot.
        lengths: keys that each query sees, its own included.
        row: row of the first query in the pass.
    """

    pool: SlotPool
    first: int
    lengths: tuple[int, ...]
    row: int


def by_pool(segments: Sequence[Segment]) -> list[tuple[SlotPool, list[Segment]]]:
    """Group segments by their pool, in order of appearance."""
    groups: dict[int, tuple[SlotPool, list[Segment]]] = {}
    for segment in segments:
        groups.setdefault(id(segment.pool), (segment.pool, []))[1].append(segment)
    return list(groups.values())


def copy_groups(segments: Sequence[Segment]) -> list[list[Segment]]:
    """Group one-token segments of a pool that one copy can write.

    Their rows are consecutive, their slots are neighbors, and their positions are equal. Each other segment is a group
    of its own.
    """
    groups: list[list[Segment]] = []
    for segment in segments:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.width == segment.width == 1
            and last.start == segment.start
            and last.slot + 1 == segment.slot
            and last.row + 1 == segment.row
        ):
            groups[-1].append(segment)
        else:
            groups.append([segment])
    return groups


def decode_runs(queries: Sequence[Segment]) -> list[DecodeRun]:
    """Join queries of neighboring slots if the masked keys cost less than one call per query."""
    groups: list[list[Segment]] = []
    longest = total = 0
    for query in queries:
        last = groups[-1][-1] if groups else None
        if last is not None and last.pool is query.pool and last.slot + 1 == query.slot:
            count, most, keys = len(groups[-1]) + 1, max(longest, query.start), total + query.start
            masked = count * most - keys
            if not (last.invariant or query.invariant) and masked <= KEYS_PER_CALL_COST * (count - 1):
                groups[-1].append(query)
                longest, total = most, keys
                continue
        groups.append([query])
        longest = total = query.start
    return [
        DecodeRun(group[0].pool, group[0].slot, tuple(query.stop for query in group), group[0].row) for group in groups
    ]

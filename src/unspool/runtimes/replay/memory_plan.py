"""Memory planning: places for buffers in one block of memory. Buffers in use at different times can overlap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

_ALIGNMENT: Final = 64


class Lifetime(NamedTuple):
    """A buffer of `size` bytes that is in use from step `first` to step `last`, both included."""

    size: int
    first: int
    last: int


def plan_memory(lifetimes: Sequence[Lifetime]) -> tuple[list[int], int]:
    """Return the offset of each buffer, a multiple of 64, and the bytes of the block. lifetimes: ordered by `first`."""
    offsets: list[int] = []
    in_use: list[tuple[int, int, int]] = []  # (offset, end, last), by offset
    total = 0
    for size, first, last in lifetimes:
        in_use = [each for each in in_use if each[2] >= first]
        offset = 0
        for start, end, _ in in_use:
            if start - offset >= size:
                break
            offset = max(offset, -(-end // _ALIGNMENT) * _ALIGNMENT)
        in_use.append((offset, offset + size, last))
        in_use.sort()
        offsets.append(offset)
        total = max(total, offset + size)
    return offsets, total

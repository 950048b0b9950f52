"""The common prefix of two token sequences."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return the length of the common prefix. Both sequences must have the same type: two lists, or two tuples."""
    low, high = 0, min(len(first), len(second))
    # [0, low) is equal; slice comparisons run in C, and bisection mostly ends with the first one.
    probe = high
    while low < high:
        if first[low:probe] == second[low:probe]:
            low = probe
        else:
            high = probe - 1
        probe = (low + high + 1) // 2
    return low

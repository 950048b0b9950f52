"""How far two sequences of tokens are alike."""

from __future__ import annotations

from collections.abc import Sequence


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens are the same. Both sequences must be of one type: two lists, or two tuples."""
    low, high = 0, min(len(first), len(second))
    # [0, low) is alike; bisection by slices runs in C, and mostly ends with the first comparison.
    probe = high
    while low < high:
        if first[low:probe] == second[low:probe]:
            low = probe
        else:
            high = probe - 1
        probe = (low + high + 1) // 2
    return low

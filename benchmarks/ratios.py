"""The arithmetic of the figures: pairs in, medians out."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Ratio(NamedTuple):
    """The median of ratios taken pair by pair, and their range."""

    median: float
    lowest: float
    highest: float


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio | None:
    """Return how many times as long theirs took, pair by pair; None if there is not a single pair.

    A pair was measured within the same minute, so that a machine that slows down slows both.
    """
    pairs = [their / our for our, their in zip(ours, theirs, strict=False)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs)) if pairs else None

"""How much token sequences resemble each other: the utility of minimum Bayes risk decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Final, TypeAlias

LONGEST: Final = 4
"""Tokens of the longest n-grams compared."""

Profile: TypeAlias = tuple[Counter[tuple[int, ...]], ...]
"""How often each n-gram stands in a sequence, for n = 1 to LONGEST."""


def profile(tokens: Sequence[int]) -> Profile:
    """Return the n-grams of a sequence; orders that it is too short for are empty."""
    return tuple(Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, LONGEST + 1))


def resemblance(one: Profile, other: Profile) -> float:
    """Return the mean F1 of the n-grams that two sequences share: 1 for equal ones, 0 where no token is shared.

    F1 of an order is 2 * shared / (n-grams of one + n-grams of the other); an n-gram is shared as often as it stands
    in both. An order that both are too short for does not count.

    Worked example (test_resemblance_worked_example): a b c d and a b d share 3 tokens, F1 = 6/7; one pair, F1 = 2/5;
    no triple; and only one of them has four tokens: (6/7 + 2/5 + 0 + 0) / 4 = 0.3143.
    """
    orders = [(first, second) for first, second in zip(one, other, strict=True) if first or second]
    return math.fsum(_f1(first, second) for first, second in orders) / len(orders)


def _f1(one: Counter[tuple[int, ...]], other: Counter[tuple[int, ...]]) -> float:
    shared = sum(min(one[gram], other[gram]) for gram in one.keys() & other.keys())
    return 2 * shared / (one.total() + other.total())


def mean_resemblances(sequences: Sequence[Sequence[int]]) -> list[float]:
    """Return each sequence's mean resemblance to all others, equal ones among them; 0 where there is no other.

    Args:
        sequences: token ids, at least one in each.
    """
    profiles = [profile(sequence) for sequence in sequences]
    found: list[list[float]] = [[] for _ in profiles]
    for (first, one), (second, other) in combinations(enumerate(profiles), 2):
        value = resemblance(one, other)
        found[first].append(value)
        found[second].append(value)
    # fsum does not depend on order, so equal sequences get equal figures.
    return [math.fsum(values) / max(len(values), 1) for values in found]

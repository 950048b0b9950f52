"""Resemblance of token sequences by n-gram F1: the utility function of minimum Bayes risk decoding."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Final, TypeAlias

LONGEST: Final = 4
"""The length in tokens of the longest n-grams compared."""

Profile: TypeAlias = tuple[Counter[tuple[int, ...]], ...]
"""The n-gram counts of a sequence, for n = 1 to LONGEST."""


def profile(tokens: Sequence[int]) -> Profile:
    """Return the n-gram counts of a sequence; empty for each n above its length."""
    return tuple(Counter(zip(*(tokens[start:] for start in range(n)), strict=False)) for n in range(1, LONGEST + 1))


def ngram_f1(one: Profile, other: Profile) -> float:
    """Return the mean n-gram F1 of two sequences: 1 if they are equal, 0 if they share no token.

    For each n, F1 = 2 * shared / (n-grams of one + n-grams of the other). `shared` counts each n-gram by the smaller of
    its two counts. The mean leaves out each n above both lengths.

    Worked example (test_resemblance_worked_example): a b c d and a b d share 3 tokens, F1 = 6/7; 1 pair, F1 = 2/5; 0
    triples; and only one of them has 4 tokens: (6/7 + 2/5 + 0 + 0) / 4 = 0.3143.
    """
    orders = [(first, second) for first, second in zip(one, other, strict=True) if first or second]
    return math.fsum(_f1(first, second) for first, second in orders) / len(orders)


def _f1(one: Counter[tuple[int, ...]], other: Counter[tuple[int, ...]]) -> float:
    shared = sum(min(one[gram], other[gram]) for gram in one.keys() & other.keys())
    return 2 * shared / (one.total() + other.total())


def mean_ngram_f1(sequences: Sequence[Sequence[int]]) -> list[float]:
    """Return each sequence's mean resemblance to all others, including equal ones; 0 for a single sequence.

    Args:
        sequences: token ids, at least one per sequence.
    """
    profiles = [profile(sequence) for sequence in sequences]
    found: list[list[float]] = [[] for _ in profiles]
    for (first, one), (second, other) in combinations(enumerate(profiles), 2):
        value = ngram_f1(one, other)
        found[first].append(value)
        found[second].append(value)
    # fsum does not depend on order, so equal sequences get equal values.
    return [math.fsum(values) / max(len(values), 1) for values in found]

"""What processors remember of a sequence."""

from __future__ import annotations

import random
from collections import Counter

from unspool.processors.history import TokenCounts, recent


def as_dict(counts: TokenCounts) -> dict[int, float]:
    return dict(zip(counts.ids.tolist(), counts.counts.tolist(), strict=True))


def test_counts_grow_with_the_sequence_and_leave_out_what_is_excluded_or_unknown():
    rng = random.Random(0)
    tokens = [rng.randrange(60) for _ in range(500)]
    counts = TokenCounts(tokens[:20], 50, frozenset({3, 4}))
    for token in tokens[20:]:
        counts.add(token)
    assert as_dict(counts) == {t: n for t, n in Counter(tokens).items() if t < 50 and t not in (3, 4)}


def test_a_copy_grows_apart():
    counts = TokenCounts([1, 1, 2], 10)
    copy = counts.copy()
    copy.add(1)
    copy.add(9)
    counts.add(5)
    assert as_dict(counts) == {1: 2, 2: 1, 5: 1}
    assert as_dict(copy) == {1: 3, 2: 1, 9: 1}


def test_recent_tokens():
    assert recent((1, 2, 3), 2) == (2, 3)
    assert recent((1,), 2) == (1,)
    assert recent((1, 2), 0) == ()

"""Memory planning: buffers in use at the same time never overlap."""

from __future__ import annotations

import random

from unspool.runtimes.replay.memory_plan import Lifetime, plan_memory


def test_buffers_of_overlapping_lifetimes_have_memory_of_their_own() -> None:
    rng = random.Random(5)
    for _ in range(200):
        lifetimes = []
        for first in sorted(rng.randrange(40) for _ in range(rng.randrange(60))):
            lifetimes.append(Lifetime(rng.choice((1, 64, 100, 4000)), first, first + rng.randrange(8)))
        offsets, total = plan_memory(lifetimes)
        assert total == max((offset + each.size for offset, each in zip(offsets, lifetimes, strict=True)), default=0)
        for one, (offset, life) in enumerate(zip(offsets, lifetimes, strict=True)):
            assert offset % 64 == 0
            for other_offset, other in zip(offsets[:one], lifetimes[:one], strict=True):
                if life.first <= other.last and other.first <= life.last:
                    assert offset + life.size <= other_offset or other_offset + other.size <= offset


def test_memory_is_used_again() -> None:
    chain = [Lifetime(64, step, step + 1) for step in range(100)]
    assert plan_memory(chain)[1] == 128

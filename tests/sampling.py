"""Long tables of cases, cut to a fixed sample unless the whole is asked for (`pytest --all`, `make test-all`)."""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from typing import TypeVar

Case = TypeVar("Case")

ALL = "UNSPOOL_TEST_ALL"


def run_all() -> bool:
    """Return whether this run takes every case."""
    return os.environ.get(ALL, "") not in ("", "0")


def sampled(cases: Sequence[Case], count: int, *, seed: int = 0) -> list[Case]:
    """Return `count` of the cases in their own order, the same ones in every run, or all of them with --all.

    Use it where parameters are made: `@pytest.mark.parametrize("case", sampled(CASES, 20))`.
    """
    if run_all() or count >= len(cases):
        return list(cases)
    chosen = random.Random(seed).sample(range(len(cases)), count)
    return [cases[index] for index in sorted(chosen)]

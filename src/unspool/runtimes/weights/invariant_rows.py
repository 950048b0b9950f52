"""The switch of batch invariance: must layers now give a row the same bits in every batch?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

INVARIANT: ContextVar[bool] = ContextVar("unspool_invariant_rows", default=False)


@contextmanager
def invariant_rows() -> Iterator[None]:
    """Inside this context, layers use the kernel that gives a row the same bits in every batch."""
    token = INVARIANT.set(True)
    try:
        yield
    finally:
        INVARIANT.reset(token)

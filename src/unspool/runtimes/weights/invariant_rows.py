"""Whether layers must now give a row the same bits in any company."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

INVARIANT: ContextVar[bool] = ContextVar("unspool_invariant_rows", default=False)


@contextmanager
def invariant_rows() -> Iterator[None]:
    """Let layers use, while the context lasts, the one kernel that gives a row the same bits in any company."""
    token = INVARIANT.set(True)
    try:
        yield
    finally:
        INVARIANT.reset(token)

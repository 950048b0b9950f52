"""Base classes of logits processors: a fixed state, and the threshold of a truncation.

Owns: `Fixed`, the base of processors with a constant state, and `Limit`, the state of truncations.
Does not know: any single processor.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from unspool.protocols import Context, Processor

S = TypeVar("S")


class Fixed(Processor, Generic[S]):
    """Base of processors with a constant state: the request's parameters only."""

    def advance(self, state: S, token: int) -> S:
        """Return the state: it does not depend on the output."""
        return state

    def fork(self, state: S) -> S:
        """Return the state: it never changes."""
        return state


class Limit(NamedTuple):
    """A truncation's parameter, and the least number of tokens to keep."""

    value: float
    least: int


def limit(value: float, context: Context) -> Limit:
    """Return the state of a truncation with this value and the request's `min_tokens_to_keep`."""
    return Limit(float(value), max(1, context.min_tokens_to_keep))

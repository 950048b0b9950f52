"""What processors of a kind have in common: a state that never changes after the prompt, and a number that cuts.

Owns: `Fixed`, the base of processors without memory, and `Limit`, the state of those that truncate.
Does not know: any one processor.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

from unspool.protocols import Context, Processor

S = TypeVar("S")


class Fixed(Processor, Generic[S]):
    """Base of processors whose state is the request's parameters and nothing else."""

    def advance(self, state: S, token: int) -> S:
        """Return the state: it does not depend on the output."""
        return state

    def fork(self, state: S) -> S:
        """Return the state: it never changes."""
        return state


class Limit(NamedTuple):
    """A truncation's parameter, and the fewest tokens it must leave allowed."""

    value: float
    least: int


def limit(value: float, context: Context) -> Limit:
    """Return the truncation `value` of this request."""
    return Limit(float(value), max(1, context.min_tokens_to_keep))

"""One slot of the KV cache, and the search for the slot with the longest common prefix.

Positions of a slot, with cached = len(slot.tokens):

    [0, num_invariant_tokens)       K/V that were computed in batch-invariant passes
    [num_invariant_tokens, cached)  K/V that were computed in any pass
    [cached, capacity)              room; never read by a sequence, but always finite
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from unspool.prefixes import common_prefix
from unspool.runtimes.kv.pool import SlotPool


@dataclass(eq=False, slots=True)
class Slot:
    """One slot of a pool.

    Attributes:
        pool: the pool that holds the slot.
        index: of the slot in its pool.
        number: of the slot in its size class. Slots with consecutive numbers are mostly neighbors in memory.
        tokens: the tokens with K/V at positions [0, cached).
        num_invariant_tokens: the number of leading tokens with K/V from batch-invariant passes.
        nonfinite: True if some K/V can be NaN or infinite.
        context: identifies everything besides the tokens that K/V depend on (weights, encoder source), and the salt of
            the request. Slots with different contexts share no K/V.
        position_offset: the position of the next token, minus `length`. Images can take fewer positions than tokens.
        lru_epoch: the epoch in which the slot became free; see SlotTable.
    """

    pool: SlotPool
    index: int
    number: int
    tokens: list[int] = field(default_factory=list)
    num_invariant_tokens: int = 0
    nonfinite: bool = False
    context: Hashable = None
    position_offset: int = 0
    lru_epoch: int = 0

    @property
    def length(self) -> int:
        """Number of tokens cached."""
        return len(self.tokens)

    def forget(self, keep: int) -> None:
        """Keep positions [0, keep). If K/V can be nonfinite, [keep, cached) is zeroed."""
        if self.nonfinite:
            self.pool.zero(self.index, keep, len(self.tokens))
            self.nonfinite = keep > 0
        del self.tokens[keep:]
        self.num_invariant_tokens = min(self.num_invariant_tokens, keep)

    def clear(self) -> None:
        """Keep no position, and give the memory back to the system."""
        self.forget(0)
        self.pool.give_back(self.index)

    def take(self, source: Slot, length: int | None = None) -> None:
        """Become a copy of positions [0, length) of `source` (None: all); only positions that differ are copied.

        [0, start) is already equal in both slots and [start, length) is copied.
        """
        length = source.length if length is None else length
        invariant = min(source.num_invariant_tokens, length)
        start = min(self.num_shared(source), length)
        if self.num_invariant_tokens < min(start, invariant):  # equal tokens, but not the same bits
            start = self.num_invariant_tokens
        self.pool.copy(self.index, source.pool, source.index, start, length)
        self.tokens = source.tokens[:length]
        self.num_invariant_tokens, self.nonfinite, self.context = invariant, source.nonfinite, source.context
        self.position_offset = source.position_offset

    def num_shared(self, other: Slot) -> int:
        """Return the number of leading positions that hold the same K/V in both slots."""
        return common_prefix(self.tokens, other.tokens) if self.context == other.context else 0


class PrefixMatch(NamedTuple):
    """A slot that holds K/V of the first `length` tokens of a sequence."""

    slot: Slot
    length: int


def longest_prefix_match(
    slots: Iterable[Slot], tokens: list[int], context: Hashable, *, least: int = 1, invariant: bool = False
) -> PrefixMatch | None:
    """Return the slot with the longest common prefix; of equal ones the first. None if all are shorter than `least`.

    The search is linear over the slots. With [0, length) as the best prefix so far, a slot can only win if it holds
    tokens[length]. This one comparison rules out most of several hundred slots. Only then `common_prefix` compares
    [0, limit) by bisection, with limit = min(cached, len(tokens)).

    Args:
        slots: the candidates.
        tokens: of the sequence.
        context: of the sequence; only slots with this context match. See Slot.
        least: the shortest prefix that counts, in tokens, at least 1.
        invariant: True if only [0, num_invariant_tokens) of each slot counts.
    """
    best, length = None, least - 1
    for slot in slots:
        limit = min(slot.num_invariant_tokens if invariant else slot.length, len(tokens))
        if limit > length and slot.tokens[length] == tokens[length] and slot.context == context:
            shared = min(common_prefix(slot.tokens, tokens), limit)
            if shared > length:
                best, length = slot, shared
    return None if best is None else PrefixMatch(best, length)

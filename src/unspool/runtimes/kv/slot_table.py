"""Which sequence is cached in which slot. Owns lengths, tokens and free slots; knows no model and no attention.

A live sequence owns one slot, and positions [0, len(tokens)) of it. What lies behind is never read by a sequence, but
is always finite. A free slot still remembers the tokens whose keys and values it holds, so that a fork, or a new
sequence that begins with them, may reuse them. Remembering takes no memory of its own: what has been free longest is
overwritten first, and no pool grows for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from unspool.prefixes import common_prefix
from unspool.runtimes.kv.limits import NO_LIMITS, Limits, check_room
from unspool.runtimes.kv.pool import LARGEST_POOL_TOKENS, Layout, SlotPool, next_pool_size, size_class
from unspool.types import Seq


@dataclass(eq=False, slots=True)
class Slot:
    """One slot of a pool.

    number: of the slot among all of its size class; neighbors lie side by side in memory.
    tokens: whose keys and values positions [0, len(tokens)) hold.
    num_invariant_tokens: of how many leading tokens these were computed in invariant passes, free of any company.
    poisoned: whether some of them may not be finite.
    context: names what keys and values depend on besides the tokens. Slots of two contexts share none.
    era: when a free slot came back; see SlotTable.
    """

    pool: SlotPool
    index: int
    number: int
    tokens: list[int] = field(default_factory=list)
    num_invariant_tokens: int = 0
    nonfinite: bool = False
    context: int = 0
    lru_epoch: int = 0

    @property
    def length(self) -> int:
        """Number of tokens cached."""
        return len(self.tokens)

    def forget(self, keep: int) -> None:
        """Keep the first `keep` tokens; clears what may not be finite."""
        if self.nonfinite:
            self.pool.zero(self.index, keep, len(self.tokens))
            self.nonfinite = keep > 0
        del self.tokens[keep:]
        self.num_invariant_tokens = min(self.num_invariant_tokens, keep)

    def take(self, source: Slot, length: int | None = None) -> None:
        """Become a copy of the first `length` tokens of `source` (None: all), copying only what differs from here."""
        length = source.length if length is None else length
        invariant = min(source.num_invariant_tokens, length)
        start = min(self.num_shared(source), length)
        if self.num_invariant_tokens < min(start, invariant):
            start = self.num_invariant_tokens
        self.pool.copy(self.index, source.pool, source.index, start, length)
        self.tokens = source.tokens[:length]
        self.num_invariant_tokens, self.nonfinite, self.context = invariant, source.nonfinite, source.context

    def num_shared(self, other: Slot) -> int:
        """Return how many leading positions hold the same keys and values in both slots."""
        return common_prefix(self.tokens, other.tokens) if self.context == other.context else 0


class Found(NamedTuple):
    """A slot, and how many leading tokens of a sequence it holds keys and values for."""

    slot: Slot
    length: int


def longest_prefix_match(
    slots: Iterable[Slot], tokens: list[int], context: int, *, least: int = 1, invariant: bool = False
) -> Found | None:
    """Return the first of the slots that share most leading tokens; None where all share fewer than `least`.

    Args:
        context: of the tokens; see Slot.
        invariant: whether only tokens count that were computed in invariant passes.
    """
    best, length = None, least - 1
    for slot in slots:
        held = min(slot.num_invariant_tokens if invariant else slot.length, len(tokens))
        # Hundreds of slots are looked through for each prompt: one token tells most of them off.
        if held > length and slot.tokens[length] == tokens[length] and slot.context == context:
            shared = min(common_prefix(slot.tokens, tokens), held)
            if shared > length:
                best, length = slot, shared
    return None if best is None else Found(best, length)


class SlotTable:
    """The sequences of one model and their slots.

    Args:
        layout: what each layer keeps.
        limits: the hard ones on live sequences and their tokens are kept here. All slots together take at most about
            twice the memory of `max_tokens` or `soft_max_tokens`: a sequence fills at least half of its slot, or lies
            in the smallest one.
    """

    def __init__(self, layout: Layout, limits: Limits = NO_LIMITS) -> None:
        self.layout = layout
        self.max_tokens, self.max_sequences = limits.max_tokens, limits.max_sequences
        most = limits.soft_max_tokens if limits.max_tokens is None else limits.max_tokens
        self._budget = None if most is None else 2 * most
        self.live: dict[Seq, Slot] = {}
        self._pools: dict[int, list[SlotPool]] = {}
        self._free: dict[int, list[Slot]] = {}
        # An era ends when nothing is live, or when as many slots have come back in it as there are. Within one, slots
        # are taken by number: what lies side by side is attended in fewer calls.
        self._era, self._num_back = 1, 0
        self._context = 0

    @property
    def num_live_tokens(self) -> int:
        """Tokens cached over all live sequences."""
        return sum(slot.length for slot in self.live.values())

    @property
    def num_slot_tokens(self) -> int:
        """Tokens that the allocated slots have room for."""
        return sum(pool.num_tokens for pools in self._pools.values() for pool in pools)

    def reserve(self, needs: Sequence[tuple[Seq, int]]) -> list[Slot]:
        """Give every sequence room for so many more tokens; unknown ones are opened.

        Returns:
            the slots, in the order of `needs`.

        Raises:
            CapacityError: the limits leave no room. Nothing has been opened then.
        """
        self._check_limits([seq for seq, _ in needs], sum(count for _, count in needs))
        opened = [seq for seq, _ in needs if seq not in self.live]
        try:
            return [self._room(seq, count) for seq, count in needs]
        except BaseException:
            for seq in opened:
                self.release(seq)
            raise

    def _check_limits(self, seqs: Sequence[Seq], num_tokens: int) -> None:
        check_room(
            num_sequences=len(self.live.keys() | set(seqs)),
            num_tokens=self.num_live_tokens + num_tokens,
            max_sequences=self.max_sequences,
            max_tokens=self.max_tokens,
        )

    def _room(self, seq: Seq, count: int) -> Slot:
        slot = self.live.get(seq)
        if slot is None:
            slot = self._take_free(size_class(count))
            slot.tokens, slot.num_invariant_tokens, slot.context = [], 0, self._context
        elif slot.length + count > slot.pool.capacity:
            larger = self._take_free(size_class(slot.length + count), slot)
            larger.take(slot)
            self._put_back(slot)
            slot = larger
        self.live[seq] = slot
        return slot

    def advance(self, seq: Seq, tokens: Sequence[int], *, invariant: bool, nonfinite: bool) -> None:
        """Note that the tokens' keys and values stand in the sequence's slot.

        Args:
            invariant: whether they were computed in an invariant pass.
            poisoned: whether they may not be finite.
        """
        slot = self.live[seq]
        if invariant and slot.num_invariant_tokens == slot.length:
            slot.num_invariant_tokens += len(tokens)
        slot.tokens.extend(tokens)
        slot.nonfinite |= nonfinite
        assert slot.length <= slot.pool.capacity, "a sequence has outgrown its slot"

    def fork(self, seq: Seq, child: Seq) -> None:
        """Give `child` a slot with the same tokens; see Runtime.fork."""
        assert child not in self.live, f"sequence {child} exists"
        parent = self.live[seq]
        self._check_limits([child], parent.length)
        slot = self._take_free(size_class(parent.length + 1), parent)
        slot.take(parent)
        self.live[child] = slot

    def truncate(self, seq: Seq, keep: int) -> int:
        """Keep at most the first `keep` tokens; see Runtime.truncate."""
        assert keep >= 0, "a sequence cannot keep fewer than 0 tokens"
        slot = self.live[seq]
        slot.forget(min(keep, slot.length))
        return slot.length

    def release(self, seq: Seq) -> None:
        """Free the sequence's slot; an unknown one is no error."""
        slot = self.live.pop(seq, None)
        if slot is not None:
            self._put_back(slot)

    def find(self, tokens: Sequence[int], *, least: int, invariant: bool) -> Found | None:
        """Return the slot, free or live, that holds most of the leading tokens; None where all hold fewer than `least`.

        invariant: see most_alike.
        """
        slots = (slot for slot in chain(*self._free.values(), self.live.values()) if not slot.nonfinite)
        return longest_prefix_match(slots, list(tokens), self._context, least=least, invariant=invariant)

    def recall(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool) -> int:
        """Open a sequence with as many leading tokens as are cached already; see Runtime.match_prefix.

        Raises:
            CapacityError: the limits leave no room.
        """
        assert seq not in self.live, f"sequence {seq} exists"
        found = self.find(tokens, least=least, invariant=invariant)
        if found is None:
            return 0
        source, length = found
        self._check_limits([seq], length)
        # Another token is to follow, at least.
        capacity = size_class(len(tokens) + 1)
        free = self._free.setdefault(capacity, [])
        if source.length == length and source in free:
            free.remove(source)
            slot = source
        else:
            slot = self._take_free(capacity)
            slot.take(source, length)
        self.live[seq] = slot
        return length

    def forget_free(self) -> None:
        """Let nothing that is cached now serve a new sequence, after the model's weights have changed."""
        self._context += 1
        for slots in self._free.values():
            for slot in slots:
                slot.forget(0)

    def _put_back(self, slot: Slot) -> None:
        if slot.nonfinite:
            slot.forget(0)
        slot.lru_epoch = self._era
        self._free[slot.pool.capacity].append(slot)
        self._num_back += 1
        if not self.live or self._num_back >= self._num_slots:
            self._era, self._num_back = self._era + 1, 0

    @property
    def _num_slots(self) -> int:
        return sum(pool.num_slots for pools in self._pools.values() for pool in pools)

    def _take_free(self, capacity: int, wanted: Slot | None = None) -> Slot:
        """Remove and return a free slot: the one most alike `wanted`, else the one that has been of no use longest."""
        free = self._free.setdefault(capacity, [])
        if not free:
            self._grow(capacity)
        by_age = sorted(free, key=lambda slot: (slot.lru_epoch if slot.tokens else 0, slot.number))
        alike = longest_prefix_match(by_age, wanted.tokens, wanted.context) if wanted is not None else None
        best = by_age[0] if alike is None else alike.slot
        free.remove(best)
        return best

    def _grow(self, capacity: int) -> None:
        pools = self._pools.setdefault(capacity, [])
        number = sum(pool.num_slots for pool in pools)
        count = next_pool_size(capacity, number)
        if self._budget is not None:
            if self.num_slot_tokens + count * capacity > self._budget:
                self._drop_idle_pools()
            count = max(1, min(count, (self._budget - self.num_slot_tokens) // capacity))
        last = pools[-1] if pools else None
        if last is not None and self._can_move(last, (last.num_slots + count) * capacity):
            pool = self._move(last, SlotPool(self.layout, capacity, last.num_slots + count))
            pools[-1] = pool
        else:
            pool = SlotPool(self.layout, capacity, count)
            pools.append(pool)
        opened = range(pool.num_slots - count, pool.num_slots)
        self._free.setdefault(capacity, []).extend(
            Slot(pool, index, number + place) for place, index in enumerate(opened)
        )

    def _can_move(self, old: SlotPool, num_tokens: int) -> bool:
        """Return whether a pool can move into one of so many tokens."""
        fits = self._budget is None or self.num_slot_tokens + num_tokens <= self._budget
        return num_tokens <= LARGEST_POOL_TOKENS and fits

    def _move(self, old: SlotPool, new: SlotPool) -> SlotPool:
        """Move all that one pool holds to the same slots of a larger one: what lies in one pool shares calls.

        Both are in memory meanwhile, so there must be room for both: see `_can_move`.
        """
        for slot in chain(self.live.values(), self._free[old.capacity]):
            if slot.pool is old:
                new.copy(slot.index, old, slot.index, 0, slot.length)
                slot.pool = new
        return new

    def _drop_idle_pools(self) -> None:
        used = {id(slot.pool) for slot in self.live.values()}
        for capacity, pools in self._pools.items():
            pools[:] = [pool for pool in pools if id(pool) in used]
            free = self._free[capacity]
            free[:] = [slot for slot in free if id(slot.pool) in used]

    def check(self) -> None:
        """Assert what must always hold: each slot is live once or free once, and no sequence outgrows its slot."""
        free = [slot for slots in self._free.values() for slot in slots]
        places = [(id(slot.pool), slot.index) for slot in (*self.live.values(), *free)]
        assert len(set(places)) == len(places), "a slot belongs to two"
        count = self._num_slots
        assert len(places) == count, f"{count} slots exist, {len(places)} are live or free"
        for slot in (*self.live.values(), *free):
            assert slot.length <= slot.pool.capacity, "a sequence has outgrown its slot"
            assert 0 <= slot.num_invariant_tokens <= slot.length, "more invariant tokens than tokens"
        assert not any(slot.nonfinite for slot in free), "a free slot was not cleared"
        if self.max_tokens is not None:
            assert self.num_live_tokens <= self.max_tokens, "more tokens are cached than allowed"
        if self.max_sequences is not None:
            assert len(self.live) <= self.max_sequences, "more sequences are live than allowed"

"""The KV cache manager: which sequence is cached in which slot, and prefix caching over free and live slots.

Owns live sequences, free slots and pools. Does not know models or attention. A live sequence owns exactly one slot.

A free slot keeps its tokens and K/V until it is reused: a fork, or a new sequence with the same prefix, can take them
over. So prefix caching needs no memory of its own, and no pool grows for it. The least recently used slot is
overwritten first (LRU eviction). If the memory of a slot can be given back to the system, the free slots give it back
as soon as all slots hold more tokens than live sequences ever held at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from unspool.errors import ModelError
from unspool.runtimes.kv.limits import NO_LIMITS, Limits, check_room
from unspool.runtimes.kv.pool import Layout, SlotPool, can_give_back, next_pool_size, size_class
from unspool.runtimes.kv.slot import PrefixMatch, Slot, longest_prefix_match
from unspool.tuning import CACHED_TOKENS, LARGEST_POOL_TOKENS
from unspool.types import Seq


class SlotTable:
    """The live sequences of one model, and their slots.

    Args:
        layout: K/V shapes per layer.
        limits: the hard limits on live sequences and their tokens are enforced here. All slots together take at most
            about twice the memory of `max_tokens` or `soft_max_tokens`, because a sequence fills at least half of its
            slot, except in the smallest size class.

    Attributes:
        live: the slot per live sequence.
        num_live_tokens: tokens cached over all live sequences.
        num_slots: allocated slots, live or free.
        num_slot_tokens: tokens that all allocated slots have room for.
    """

    def __init__(self, layout: Layout, limits: Limits = NO_LIMITS) -> None:
        self.layout = layout
        self.max_tokens, self.max_sequences = limits.max_tokens, limits.max_sequences
        most = limits.soft_max_tokens if limits.max_tokens is None else limits.max_tokens
        self._budget = None if most is None else 2 * most
        self.live: dict[Seq, Slot] = {}
        self.num_live_tokens = self.num_slots = self.num_slot_tokens = 0
        self._pools: dict[int, list[SlotPool]] = {}
        self._free: dict[int, list[Slot]] = {}
        # An epoch ends if no slot is live, or if num_slots slots became free in it. Within an epoch, slots are taken
        # by number: neighbors in memory are attended in fewer calls.
        self._epoch, self._num_freed = 1, 0
        self._version = 0
        self._can_evict = can_give_back(layout)
        self._num_free_tokens, self._most_tokens = 0, CACHED_TOKENS

    def reserve(self, needs: Sequence[tuple[Seq, int]], salts: Mapping[Seq, str] | None = None) -> list[Slot]:
        """Give each sequence room for more tokens; a sequence that is not live is opened.

        Args:
            needs: (sequence, number of further tokens) per sequence.
            salts: of sequences that are opened, see `Feed.salt`; None for none.

        Returns:
            The slots, in the order of `needs`. Each has room at [cached, cached + number).

        Raises:
            CapacityError: if the limits leave no room. In this case no sequence is opened.
        """
        opened = [seq for seq, _ in needs if seq not in self.live]
        self._check_limits(len(opened), sum([count for _, count in needs]))
        try:
            return [self._room(seq, count, (salts or {}).get(seq, "")) for seq, count in needs]
        except BaseException:
            for seq in opened:
                self.release(seq)
            raise

    def _check_limits(self, num_opened: int, num_tokens: int) -> None:
        check_room(
            num_sequences=len(self.live) + num_opened,
            num_tokens=self.num_live_tokens + num_tokens,
            max_sequences=self.max_sequences,
            max_tokens=self.max_tokens,
        )

    def _room(self, seq: Seq, count: int, salt: str) -> Slot:
        slot = self.live.get(seq)
        if slot is None:
            slot = self._take_free(size_class(count))
            slot.tokens, slot.num_invariant_tokens = [], 0
            slot.context, slot.position_offset = (self._version, salt), 0
        elif slot.length + count > slot.pool.capacity:
            larger = self._take_free(size_class(slot.length + count), slot)
            larger.take(slot)
            # The larger slot holds the same prefix, so the smaller one is of no use.
            slot.clear()
            self._put_back(slot)
            slot = larger
        self.live[seq] = slot
        return slot

    def advance(self, seq: Seq, tokens: Sequence[int], *, invariant: bool, nonfinite: bool) -> None:
        """Record that K/V of these tokens were written at [cached, cached + len(tokens)) of the sequence's slot.

        Args:
            seq: a live sequence.
            tokens: in order.
            invariant: True if K/V were computed in a batch-invariant pass.
            nonfinite: True if K/V can be NaN or infinite.
        """
        slot = self.live[seq]
        self.num_live_tokens += len(tokens)
        if invariant and slot.num_invariant_tokens == slot.length:
            slot.num_invariant_tokens += len(tokens)
        slot.tokens.extend(tokens)
        slot.nonfinite |= nonfinite
        if self._can_evict:
            self._evict()
        assert slot.length <= slot.pool.capacity, "a sequence is longer than its slot"

    def _evict(self) -> None:
        """Give memory of free slots back until all slots hold no more tokens than live sequences ever held at once."""
        self._most_tokens = max(self._most_tokens, self.num_live_tokens)
        while self._num_free_tokens and self.num_live_tokens + self._num_free_tokens > self._most_tokens:
            filled = (slot for slots in self._free.values() for slot in slots if slot.tokens)
            slot = min(filled, key=lambda slot: (slot.lru_epoch, slot.number))
            self._num_free_tokens -= slot.length
            slot.clear()

    def fork(self, seq: Seq, child: Seq) -> None:
        """Give `child` a slot with the same tokens; see Runtime.fork.

        Raises:
            CapacityError: if the limits leave no room.
        """
        assert child not in self.live, f"sequence {child} exists"
        parent = self.live[seq]
        self._check_limits(1, parent.length)
        slot = self._take_free(size_class(parent.length + 1), parent)
        slot.take(parent)
        self._open(child, slot)

    def _open(self, seq: Seq, slot: Slot) -> None:
        self.live[seq] = slot
        self.num_live_tokens += slot.length

    def truncate(self, seq: Seq, keep: int) -> int:
        """Keep [0, min(keep, cached)) and return the new length; see Runtime.truncate."""
        assert keep >= 0, "a sequence cannot keep fewer than 0 tokens"
        slot = self.live[seq]
        keep = min(keep, slot.length)
        self.num_live_tokens -= slot.length - keep
        slot.forget(keep)
        return slot.length

    def release(self, seq: Seq) -> None:
        """Free the sequence's slot. A sequence that is not live is ignored."""
        slot = self.live.pop(seq, None)
        if slot is not None:
            self.num_live_tokens -= slot.length
            self._put_back(slot)

    def find(self, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> PrefixMatch | None:
        """Return the slot, free or live, with the longest common prefix; see `longest_prefix_match`."""
        slots = (slot for slot in chain(*self._free.values(), self.live.values()) if not slot.nonfinite)
        return longest_prefix_match(slots, list(tokens), (self._version, salt), least=least, invariant=invariant)

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        """Open a sequence with the longest cached prefix of `tokens`; see Runtime.match_prefix.

        Returns:
            The length of the prefix, in tokens; 0 if it is shorter than `least`. In this case no sequence is opened.

        Raises:
            CapacityError: if the limits leave no room.
        """
        assert seq not in self.live, f"sequence {seq} exists"
        found = self.find(tokens, least=least, invariant=invariant, salt=salt)
        if found is None:
            return 0
        source, length = found
        self._check_limits(1, length)
        capacity = size_class(len(tokens) + 1)  # at least one more token follows
        free = self._free.setdefault(capacity, [])
        if source.length == length and source in free:
            self._remove_free(source)
            slot = source
        else:
            slot = self._take_free(capacity)
            slot.take(source, length)
        self._open(seq, slot)
        return length

    def renew(self, layout: Layout) -> bool:
        """Start over after a weight change: forget the K/V of free slots.

        Returns:
            False if the model's layout is another one now: then a new table is needed.

        Raises:
            ModelError: if the layout is another one while sequences are cached.
        """
        if layout == self.layout:
            self.forget_free()
            return True
        if self.live:
            raise ModelError("the model's shape has changed while sequences are cached: finish or cancel them first")
        return False

    def forget_free(self) -> None:
        """Clear the prefix cache after the weights have changed.

        Live sequences go on, but new sequences share nothing with them.
        """
        self._version += 1
        for slots in self._free.values():
            for slot in slots:
                slot.forget(0)
        self._num_free_tokens = 0

    def _put_back(self, slot: Slot) -> None:
        if slot.nonfinite:
            slot.forget(0)
        slot.lru_epoch = self._epoch
        self._free[slot.pool.capacity].append(slot)
        self._num_free_tokens += slot.length
        self._num_freed += 1
        if not self.live or self._num_freed >= self.num_slots:
            self._epoch, self._num_freed = self._epoch + 1, 0

    def _take_free(self, capacity: int, wanted: Slot | None = None) -> Slot:
        """Remove and return a free slot: the one with the longest prefix of `wanted`, else the least recently used."""
        free = self._free.setdefault(capacity, [])
        if not free:
            self._grow(capacity)
        by_use = sorted(free, key=lambda slot: (slot.lru_epoch if slot.tokens else 0, slot.number))
        match = longest_prefix_match(by_use, wanted.tokens, wanted.context) if wanted is not None else None
        best = by_use[0] if match is None else match.slot
        self._remove_free(best)
        return best

    def _remove_free(self, slot: Slot) -> None:
        self._free[slot.pool.capacity].remove(slot)
        self._num_free_tokens -= slot.length

    def _grow(self, capacity: int) -> None:
        """Allocate free slots: in a larger copy of the last pool if memory allows it, else in a new pool."""
        pools = self._pools.setdefault(capacity, [])
        number = sum(pool.num_slots for pool in pools)
        count = next_pool_size(capacity, number)
        if self._budget is not None:
            if self.num_slot_tokens + count * capacity > self._budget:
                self._drop_idle_pools()
            count = max(1, min(count, (self._budget - self.num_slot_tokens) // capacity))
        last = pools[-1] if pools else None
        if last is not None and self._can_move((last.num_slots + count) * capacity):
            pool = self._move(last, SlotPool(self.layout, capacity, last.num_slots + count))
            pools[-1] = pool
            self._count_pool(last, -1)
        else:
            pool = SlotPool(self.layout, capacity, count)
            pools.append(pool)
        self._count_pool(pool, 1)
        opened = range(pool.num_slots - count, pool.num_slots)
        self._free.setdefault(capacity, []).extend(
            Slot(pool, index, number + place) for place, index in enumerate(opened)
        )

    def _count_pool(self, pool: SlotPool, sign: int) -> None:
        self.num_slots += sign * pool.num_slots
        self.num_slot_tokens += sign * pool.num_tokens

    def _can_move(self, num_tokens: int) -> bool:
        """Return whether a pool can move into one of `num_tokens` tokens. Both are in memory during the move."""
        fits = self._budget is None or self.num_slot_tokens + num_tokens <= self._budget
        return num_tokens <= LARGEST_POOL_TOKENS and fits

    def _move(self, old: SlotPool, new: SlotPool) -> SlotPool:
        """Move all slots of `old` to the same indices of a larger pool: slots of one pool share attention calls."""
        for slot in chain(self.live.values(), self._free[old.capacity]):
            if slot.pool is old:
                new.copy(slot.index, old, slot.index, 0, slot.length)
                old.give_back(slot.index)
                slot.pool = new
        return new

    def _drop_idle_pools(self) -> None:
        """Free the memory of pools without a live slot. Their cached prefixes are lost."""
        used = {id(slot.pool) for slot in self.live.values()}
        for capacity, pools in self._pools.items():
            for pool in pools:
                if id(pool) not in used:
                    self._count_pool(pool, -1)
            pools[:] = [pool for pool in pools if id(pool) in used]
            free = self._free[capacity]
            free[:] = [slot for slot in free if id(slot.pool) in used]
        self._num_free_tokens = sum(slot.length for slots in self._free.values() for slot in slots)

    def check(self) -> None:
        """Assert the invariants: each slot is live once or free once, counters are right, limits hold."""
        free = [slot for slots in self._free.values() for slot in slots]
        pools = [pool for pools in self._pools.values() for pool in pools]
        places = [(id(slot.pool), slot.index) for slot in (*self.live.values(), *free)]
        assert len(set(places)) == len(places), "a slot belongs to two"
        assert self.num_slots == sum(pool.num_slots for pool in pools) == len(places), "a slot is lost"
        assert self.num_slot_tokens == sum(pool.num_tokens for pool in pools), "pools are counted wrong"
        assert self.num_live_tokens == sum(slot.length for slot in self.live.values()), "tokens are counted wrong"
        assert self._num_free_tokens == sum(slot.length for slot in free), "tokens of free slots are counted wrong"
        for slot in (*self.live.values(), *free):
            assert slot.length <= slot.pool.capacity, "a sequence is longer than its slot"
            assert 0 <= slot.num_invariant_tokens <= slot.length, "more invariant tokens than tokens"
        assert not any(slot.nonfinite for slot in free), "a free slot was not cleared"
        if self.max_tokens is not None:
            assert self.num_live_tokens <= self.max_tokens, "more tokens are cached than allowed"
        if self.max_sequences is not None:
            assert len(self.live) <= self.max_sequences, "more sequences are live than allowed"

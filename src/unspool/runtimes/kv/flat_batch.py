"""The flat batch of one pass: all tokens of all feeds in one row, without padding between them."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.runtimes.kv.segments import Segment
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.wrap.hooks import LayerRow
from unspool.tuning import MIN_SHARED_PREFIX
from unspool.types import Feed


class Batch:
    """The tokens of all feeds in one row, each with its position.

    One-token feeds come first, in the order of their slots: neighbors in memory are written and attended together.

    Args:
        feeds: of the pass.
        slots: the slot of each feed.

    Attributes:
        spans: the segment of each feed, in the order of the feeds.
        tokens, positions: per row.
        asked: rows that logits are needed of, in the order of the feeds.
        hidden: rows that hidden states are needed of; None if no feed needs any.
        inner: rows and layers that inner logits are needed of; None if no feed names a layer.
        invariant: True if a feed is batch-invariant.
    """

    def __init__(self, feeds: Sequence[Feed], slots: Sequence[Slot]) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.asked: list[int] = []
        self.hidden: list[int] | None = [] if any(feed.hidden for feed in feeds) else None
        self.inner: list[LayerRow] | None = [] if any(feed.layers for feed in feeds) else None
        self.invariant = any(feed.invariant for feed in feeds)
        pairs = list(zip(feeds, slots, strict=True))
        order = sorted(range(len(pairs)), key=lambda index: _place(*pairs[index]))
        segments: dict[int, Segment] = {}
        before: tuple[Feed, Slot] | None = None
        for index in order:
            here = pairs[index]
            segments[index] = self._append(*here, 0 if before is None else _num_shared(before, here))
            before = here
        self.spans = [segments[index] for index in range(len(pairs))]
        for feed, segment in zip(feeds, self.spans, strict=True):
            self._ask(feed, segment.row)

    def _append(self, feed: Feed, slot: Slot, shared: int) -> Segment:
        row, count, length = len(self.tokens), len(feed.tokens), slot.length
        self.tokens += feed.tokens
        position = length + slot.position_offset
        self.positions += range(position, position + count)
        return Segment(slot.pool, slot.index, length, count, row, feed.invariant, shared)

    def _ask(self, feed: Feed, row: int) -> None:
        self.asked += [row + index for index in feed.asked]
        if self.hidden is not None and feed.hidden:
            self.hidden += range(row, row + len(feed.tokens))
        if self.inner is not None:
            self.inner += [LayerRow(row + index, layer) for index in feed.asked for layer in feed.layers]


def _num_shared(before: tuple[Feed, Slot], here: tuple[Feed, Slot]) -> int:
    """Return the number of leading K/V that two one-token feeds can read from one slot."""
    (first, first_slot), (second, second_slot) = before, here
    if len(first.tokens) > 1 or len(second.tokens) > 1 or first.invariant or second.invariant:
        return 0
    if first_slot.nonfinite or second_slot.nonfinite:
        return 0
    # Most sequences have little in common; their first tokens show it at once.
    if first_slot.tokens[:MIN_SHARED_PREFIX] != second_slot.tokens[:MIN_SHARED_PREFIX]:
        return 0
    return second_slot.num_shared(first_slot)


def _place(feed: Feed, slot: Slot) -> tuple[bool, int, int]:
    return len(feed.tokens) > 1, slot.pool.capacity, slot.number

"""The feeds of one pass, laid out in one row, and the rows that are wanted of it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from unspool.runtimes.kv.attention_plan import Segment
from unspool.runtimes.kv.shared_prefix import LEAST_SHARED
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.wrap.hooks import LayerRow
from unspool.types import Feed, Rows


class Batch:
    """The tokens of all feeds one behind another, each at its own position.

    One-token feeds stand first, in the order of their slots: what lies side by side in memory is written and attended
    together. Where a feed is invariant, what there is one of is doubled: a matrix product of one row may run another
    kernel than one of two or more.

    Attributes:
        spans: where each feed stands, in the order of the feeds.
        tokens, positions: of each row.
        asked: rows whose logits are wanted, in the order of the feeds.
        hidden: rows whose hidden states are wanted; None where no feed wants any.
        inner: what is wanted of inner layers; None where no feed names one.
        invariant: whether a feed is.
    """

    def __init__(self, feeds: Sequence[Feed], slots: Sequence[Slot], least_rows: int = 1) -> None:
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.asked: list[int] = []
        self.hidden: list[int] | None = [] if any(feed.hidden for feed in feeds) else None
        self.inner: list[LayerRow] | None = [] if any(feed.layers for feed in feeds) else None
        self.invariant = any(feed.invariant for feed in feeds)
        pairs = list(zip(feeds, slots, strict=True))
        order = sorted(range(len(pairs)), key=lambda index: _place(*pairs[index]))
        spans = {index: self._append(*pairs[index]) for index in order}
        for before, index in itertools.pairwise(order):
            spans[index] = spans[index]._replace(shared=_num_shared(pairs[before], pairs[index]))
        self.spans = [spans[index] for index in range(len(pairs))]
        for feed, span in zip(feeds, self.spans, strict=True):
            self._ask(feed, span.row)
        self._num_asked, self._num_inner = len(self.asked), len(self.inner or ())
        self._pad(max(least_rows, 2) if self.invariant else least_rows)

    def _append(self, feed: Feed, slot: Slot) -> Segment:
        row, count, length = len(self.tokens), len(feed.tokens), slot.length
        self.tokens += feed.tokens
        self.positions += range(length, length + count)
        return Segment(slot.pool, slot.index, length, count, row, feed.invariant)

    def _ask(self, feed: Feed, row: int) -> None:
        self.asked += [row + index for index in feed.asked]
        if self.hidden is not None and feed.hidden:
            self.hidden += range(row, row + len(feed.tokens))
        if self.inner is not None:
            self.inner += [LayerRow(row + index, layer) for index in feed.asked for layer in feed.layers]

    def _pad(self, least: int) -> None:
        for column in (self.tokens, self.positions, self.asked):
            column += column[:1] * (least - len(column))
        if self.inner is not None and self.inner:
            self.inner += self.inner[:1] * (least - len(self.inner))

    def unpad(self, rows: Rows) -> Rows:
        """Return the rows that the feeds want."""
        inner = None if rows.inner is None else rows.inner[: self._num_inner]
        return Rows(rows.logits[: self._num_asked], rows.hidden, inner)


def _num_shared(before: tuple[Feed, Slot], here: tuple[Feed, Slot]) -> int:
    """Return how many keys and values two feeds of one token each may read from the same place."""
    (first, first_slot), (second, second_slot) = before, here
    if len(first.tokens) > 1 or len(second.tokens) > 1 or first.invariant or second.invariant:
        return 0
    if first_slot.nonfinite or second_slot.nonfinite:
        return 0
    # Most sequences have little in common, which their first tokens tell.
    if first_slot.tokens[:LEAST_SHARED] != second_slot.tokens[:LEAST_SHARED]:
        return 0
    return second_slot.num_shared(first_slot)


def _place(feed: Feed, slot: Slot) -> tuple[bool, int, int]:
    return len(feed.tokens) > 1, slot.pool.capacity, slot.number

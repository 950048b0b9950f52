"""The feeds of one pass, laid out in one row, and the rows that are wanted of it."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.runtimes.passes import Span
from unspool.runtimes.slots import Slot
from unspool.runtimes.taps import Place
from unspool.types import Feed, Rows


class Batch:
    """The tokens of all feeds one behind another, each at its own position.

    Where a feed is invariant, what there is one of is doubled: a matrix product of one row may run another kernel than
    one of two or more.

    Attributes:
        spans: where each feed stands.
        tokens, positions: of each row.
        asked: rows whose logits are wanted.
        hidden: rows whose hidden states are wanted; None where no feed wants any.
        inner: what is wanted of inner layers; None where no feed names one.
        invariant: whether a feed is.
    """

    def __init__(self, feeds: Sequence[Feed], slots: Sequence[Slot]) -> None:
        self.spans: list[Span] = []
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.asked: list[int] = []
        self.hidden: list[int] | None = [] if any(feed.hidden for feed in feeds) else None
        self.inner: list[Place] | None = [] if any(feed.layers for feed in feeds) else None
        self.invariant = any(feed.invariant for feed in feeds)
        for feed, slot in zip(feeds, slots, strict=True):
            self._append(feed, slot)
        self._num_asked, self._num_inner = len(self.asked), len(self.inner or ())
        if self.invariant:
            self._pad()

    def _append(self, feed: Feed, slot: Slot) -> None:
        row, count = len(self.tokens), len(feed.tokens)
        self.spans.append(Span(slot.pool, slot.index, slot.length, count, row, feed.invariant))
        self.tokens += feed.tokens
        self.positions += range(slot.length, slot.length + count)
        self.asked += [row + index for index in feed.asked]
        if self.hidden is not None and feed.hidden:
            self.hidden += range(row, row + count)
        if self.inner is not None:
            self.inner += [Place(row + index, layer) for index in feed.asked for layer in feed.layers]

    def _pad(self) -> None:
        for column in (self.tokens, self.positions, self.asked):
            column += column[:1] if len(column) == 1 else []
        if self.inner is not None and len(self.inner) == 1:
            self.inner += self.inner

    def unpad(self, rows: Rows) -> Rows:
        """Return the rows that the feeds want."""
        inner = None if rows.inner is None else rows.inner[: self._num_inner]
        return Rows(rows.logits[: self._num_asked], rows.hidden, inner)

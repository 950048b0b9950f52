"""AttentionPlan: the attention metadata of one pass over slots: which tokens are written where, and attend to which.

All tokens of all feeds are in one row; a feed is a segment of it. The plan is made once per pass, and
cache.py applies it in every layer. Does not know models.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from unspool.runtimes.kv.pool import LayerStates, SlotPool
from unspool.runtimes.kv.shared_prefix import shared_prefixes

AttentionPath: TypeAlias = Literal["loop", "masked"]

# Longer spans are copied into their slots one by one. Where shorter ones take more copies than these, they share one
# indexed write.
_LONG_SPAN = 16
_FEW_COPIES = 3
# A call of its own costs a query about as much as so many keys more: 12 heads of 64 in float32, 4 in bfloat16 alike.
_SPARE_KEYS = 64


class Segment(NamedTuple):
    """A feed's place: `width` tokens from `row` of the pass on, at positions [start, stop) of slot `slot`.

    invariant: its queries must be attended one by one, so that each is computed the same way in any company.
    shared: how many leading keys and values it is known to have in common with the span of the row before.
    """

    pool: SlotPool
    slot: int
    start: int
    width: int
    row: int
    invariant: bool = False
    shared: int = 0

    @property
    def stop(self) -> int:
        """The position behind the last token."""
        return self.start + self.width

    @property
    def rows(self) -> slice:
        """The span's rows of the pass."""
        return slice(self.row, self.row + self.width)

    def pieces(self, width: int) -> list[Segment]:
        """Return the span cut into consecutive ones of at most `width` tokens."""
        if self.width <= width:
            return [self]
        return [
            self._replace(start=self.start + offset, width=min(width, self.width - offset), row=self.row + offset)
            for offset in range(0, self.width, width)
        ]


class SlotCopy(NamedTuple):
    """Consecutive rows that go to consecutive positions of one slot, or one each to one position of neighboring slots.

    into: a layer each, [slots, heads, positions, width]. rows: of the pass; None for all.
    """

    into: LayerStates
    rows: slice | None
    has_many_slots: bool


class SlotScatter(NamedTuple):
    """Tokens that go into one pool by one indexed write; rows: of the pass, a slice where they are consecutive."""

    pool: SlotPool
    rows: slice | torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


class DecodeRun(NamedTuple):
    """One query for each of some neighboring slots that hold about as many tokens.

    first: the first of the slots. lengths: keys that each query may see, its own included. row: of the first query.
    """

    pool: SlotPool
    first: int
    lengths: tuple[int, ...]
    row: int


class PrefixGroup(NamedTuple):
    """Runs one behind another.

    stem: a span whose first `stem_length` keys all their queries see; None where they have nothing in common.
    num_queries: of the runs. longest: keys that one of them sees at most.
    """

    runs: list[DecodeRun]
    shared_prefix: Segment | None
    stem_length: int
    num_queries: int
    longest: int


class MaskedRange(NamedTuple):
    """One query for each of some slots between `first` and `stop`, all attended in one masked call.

    lengths: [stop - first], 0 where a slot takes no part. longest: the largest of them.
    """

    pool: SlotPool
    first: int
    stop: int
    slots: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    longest: int


class Mask:
    """Which keys each query sees, as a summand of its scores: 0 where it does, else -inf."""

    def __init__(self, allowed: torch.Tensor) -> None:
        self._allowed = allowed
        self._made: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def beside(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the mask in the keys' type and on their device: made once a pass, not once a layer."""
        kind = (keys.dtype, keys.device)
        if kind not in self._made:
            allowed = self._allowed.to(keys.device)
            hidden = torch.full((), -math.inf, dtype=keys.dtype, device=keys.device)
            self._made[kind] = torch.where(allowed, torch.zeros_like(hidden), hidden)
        return self._made[kind]


class KVView(NamedTuple):
    """What some queries read: keys and values, [slots, heads, positions, width] a layer.

    mask: None where each query sees all of them, or where is_causal says that query i sees the first i + 1.
    """

    states: LayerStates
    mask: Mask | None
    is_causal: bool = False


class AttentionPlan:
    """What one pass does in every layer.

    Args:
        spans: the feeds. Those that stand side by side both in the pass and in memory share calls.
        num_rows: rows of the pass; those behind the last span are padding, and are neither cached nor attended.
        path: "loop" attends slot by slot; "masked" all one-token feeds of a pool in one call.
        device: where index tensors live.

    Attributes:
        copies, writes: where new keys and values go; each token into one of these.
        blocks: spans of several queries, attended one by one.
        groups: single queries, in the order of their rows.
        run_rows: these rows, a slice where they are consecutive.
        is_all_runs: whether the runs hold every row but padding, in order.
        ranges: single queries of a "masked" pass.
    """

    def __init__(self, spans: Sequence[Segment], num_rows: int, path: AttentionPath, device: torch.device) -> None:
        self.num_rows, self.device = num_rows, device
        self.num_tokens = sum(span.width for span in spans)
        spans = sorted(spans, key=lambda span: span.row)
        self._plan_writes(spans)
        self.blocks = [span for span in spans if span.width > 1 and not span.invariant]
        singles = [query for span in spans if span.width == 1 or span.invariant for query in span.pieces(1)]
        self.groups: list[PrefixGroup] = []
        self.run_rows: slice | torch.Tensor = slice(0, 0)
        self.ranges: list[MaskedRange] = []
        if path == "masked":
            self.ranges = [self._range(pool, group) for pool, group in _by_pool(singles)]
        elif singles:
            self.groups = _groups(singles)
            self.run_rows = self._rows([span.row for span in singles])
        self.is_all_runs = isinstance(self.run_rows, slice) and self.run_rows == slice(0, self.num_tokens)
        self._reaches: dict[tuple[int, int, int | None, bool], KVView] = {}
        self._range_masks: dict[tuple[int, int | None], Mask] = {}

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)

    def _rows(self, rows: list[int]) -> slice | torch.Tensor:
        stop = rows[0] + len(rows)
        return slice(rows[0], stop) if rows == list(range(rows[0], stop)) else self._tensor(rows)

    def _plan_writes(self, spans: Sequence[Segment]) -> None:
        self.copies: list[SlotCopy] = []
        self.writes: list[SlotScatter] = []
        for pool, each in _by_pool(spans):
            groups = _neighbors(each)
            short = [group for group in groups if group[0].width < _LONG_SPAN]
            if len(short) > _FEW_COPIES:
                groups = [group for group in groups if group[0].width >= _LONG_SPAN]
                self.writes.append(self._write(pool, [span for group in short for span in group]))
            self.copies += map(self._copy, groups)

    def _copy(self, group: list[Segment]) -> SlotCopy:
        first, count = group[0], len(group)
        rows = slice(first.row, first.row + count * first.width)
        into = first.pool.views(slice(first.slot, first.slot + count), slice(first.start, first.stop))
        return SlotCopy(into, None if rows == slice(0, self.num_rows) else rows, count > 1)

    def _write(self, pool: SlotPool, spans: list[Segment]) -> SlotScatter:
        rows = [span.row + offset for span in spans for offset in range(span.width)]
        slots = [span.slot for span in spans for _ in range(span.width)]
        positions = [span.start + offset for span in spans for offset in range(span.width)]
        return SlotScatter(pool, self._rows(rows), self._tensor(slots), self._tensor(positions))

    def _range(self, pool: SlotPool, spans: list[Segment]) -> MaskedRange:
        first, stop = min(span.slot for span in spans), max(span.slot for span in spans) + 1
        lengths = [0] * (stop - first)
        for span in spans:
            lengths[span.slot - first] = span.stop
        slots = self._tensor([span.slot - first for span in spans])
        rows = self._tensor([span.row for span in spans])
        return MaskedRange(pool, first, stop, slots, rows, self._tensor(lengths), max(lengths))

    def run_view(self, run: DecodeRun, window: int | None, start: int = 0) -> KVView:
        """Return what the queries of a run read from `start` on; each sees the last `window` keys, None for all."""
        name = (run.row, start, window, False)
        if name not in self._reaches:
            shortest, longest = min(run.lengths), max(run.lengths)
            first = start if window is None else max(start, shortest - window)
            slots = slice(run.first, run.first + len(run.lengths))
            mask = None
            if shortest < longest:
                lengths = self._tensor(list(run.lengths))[:, None, None, None]
                mask = Mask(seen(torch.arange(first, longest, device=self.device), lengths, window))
            self._reaches[name] = KVView(run.pool.views(slots, slice(first, longest)), mask)
        return self._reaches[name]

    def prefix_view(self, group: PrefixGroup) -> KVView:
        """Return what all queries of a group read."""
        span = group.shared_prefix
        assert span is not None
        name = (span.row, group.stem_length, None, True)
        if name not in self._reaches:
            states = span.pool.views(slice(span.slot, span.slot + 1), slice(0, group.stem_length))
            self._reaches[name] = KVView(states, None)
        return self._reaches[name]

    def segment_view(self, span: Segment, window: int | None, *, masked: bool) -> KVView:
        """Return what the queries of a span, or of a piece of one, read.

        masked: whether a mask is wanted also where `is_causal` would do.
        """
        name = (span.row, span.width, window, masked)
        if name not in self._reaches:
            slots = slice(span.slot, span.slot + 1)
            if sees_whole_prefix(span, window) and not masked:
                self._reaches[name] = KVView(span.pool.views(slots, slice(0, span.stop)), None, is_causal=True)
            else:
                first = 0 if window is None else max(0, span.start + 1 - window)
                queries = torch.arange(span.start, span.stop, device=self.device)[:, None]
                mask = Mask(seen(torch.arange(first, span.stop, device=self.device), queries + 1, window))
                self._reaches[name] = KVView(span.pool.views(slots, slice(first, span.stop)), mask)
        return self._reaches[name]

    def range_mask(self, part: MaskedRange, window: int | None) -> Mask:
        """Return what each slot of a range sees. --> [slots, 1, 1, keys]"""
        name = (id(part), window)
        if name not in self._range_masks:
            keys = torch.arange(part.longest, device=self.device)
            self._range_masks[name] = Mask(seen(keys, part.lengths[:, None, None, None], window))
        return self._range_masks[name]


def sees_whole_prefix(span: Segment, window: int | None) -> bool:
    """Return whether a span begins its sequence, and each of its queries sees all tokens up to its own."""
    return span.start == 0 and (window is None or window >= span.stop)


def seen(keys: torch.Tensor, lengths: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return whether each key is among the last `window` (None: all) of the first `lengths`."""
    return keys < lengths if window is None else (keys < lengths) & (keys >= lengths - window)


def _by_pool(spans: Sequence[Segment]) -> list[tuple[SlotPool, list[Segment]]]:
    groups: dict[int, tuple[SlotPool, list[Segment]]] = {}
    for span in spans:
        groups.setdefault(id(span.pool), (span.pool, []))[1].append(span)
    return list(groups.values())


def _neighbors(spans: Sequence[Segment]) -> list[list[Segment]]:
    """Join one-token spans of a pool, in consecutive rows, that go to the same position of neighboring slots."""
    groups: list[list[Segment]] = []
    for span in spans:
        last = groups[-1][-1] if groups else None
        if (
            last is not None
            and last.width == span.width == 1
            and last.start == span.start
            and last.slot + 1 == span.slot
            and last.row + 1 == span.row
        ):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


def _groups(singles: Sequence[Segment]) -> list[PrefixGroup]:
    """Cut queries into groups that have their beginning in common, or nothing."""
    found = []
    for shared_prefix in shared_prefixes(singles, singles[0].pool.bytes_per_token):
        members = singles[shared_prefix.first : shared_prefix.stop]
        longest = max(member.stop for member in members)
        base = members[0] if shared_prefix.length else None
        found.append(PrefixGroup(_runs(members), base, shared_prefix.length, len(members), longest))
    return found


def _runs(singles: Sequence[Segment]) -> list[DecodeRun]:
    """Join queries of neighboring slots where a call of their own would cost more than the keys they share in vain."""
    groups: list[list[Segment]] = []
    longest = total = 0
    for span in singles:
        last = groups[-1][-1] if groups else None
        if last is not None and last.pool is span.pool and last.slot + 1 == span.slot:
            count, most, keys = len(groups[-1]) + 1, max(longest, span.start), total + span.start
            if not (last.invariant or span.invariant) and count * most - keys <= _SPARE_KEYS * (count - 1):
                groups[-1].append(span)
                longest, total = most, keys
                continue
        groups.append([span])
        longest = total = span.start
    return [
        DecodeRun(group[0].pool, group[0].slot, tuple(span.stop for span in group), group[0].row) for group in groups
    ]

"""The attention metadata of one pass over slots (AttentionPlan): writes of new K/V, and attention calls.

All tokens of all feeds form one row. A pass is planned once and executed in every layer (cache.py). Does not know
models or sequences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from unspool.kernels.attention import SlotAttention, SlotQuery
from unspool.runtimes.kv.pool import LayerStates, SlotPool
from unspool.runtimes.kv.segments import DecodeRun, Segment, by_pool, copy_groups, decode_runs
from unspool.runtimes.kv.shared_prefix import shared_prefixes
from unspool.tuning import FEW_COPIES, LONG_SEGMENT

AttentionPath: TypeAlias = Literal["kernel", "loop", "masked"]


class SlotCopy(NamedTuple):
    """Consecutive rows for consecutive positions of one slot, or one row per slot for one position of neighbors.

    Attributes:
        into: the destination, per layer [slots, heads, positions, width].
        rows: of the pass; None for all rows.
        has_many_slots: True for one row per slot.
    """

    into: LayerStates
    rows: slice | None
    has_many_slots: bool


class SlotScatter(NamedTuple):
    """Tokens that one indexed write puts into a pool. rows: of the pass; a slice if they are consecutive."""

    pool: SlotPool
    rows: slice | torch.Tensor
    slots: torch.Tensor
    positions: torch.Tensor


class MaskedRange(NamedTuple):
    """One query per slot, for some slots in [first, stop), all attended in one masked call.

    Attributes:
        pool: the pool of the slots.
        first, stop: indices of slots.
        slots: index of each query's slot, counted from `first`.
        rows: row of each query in the pass.
        lengths: keys per slot in [first, stop); 0 for a slot without a query.
        longest: the largest of `lengths`.
    """

    pool: SlotPool
    first: int
    stop: int
    slots: torch.Tensor
    rows: torch.Tensor
    lengths: torch.Tensor
    longest: int


class Mask:
    """A mask to add to attention scores: 0 for a key that a query sees, else -inf."""

    def __init__(self, allowed: torch.Tensor) -> None:
        self._allowed = allowed
        self._made: dict[tuple[torch.dtype, torch.device], torch.Tensor] = {}

    def beside(self, keys: torch.Tensor) -> torch.Tensor:
        """Return the mask with the dtype and device of the keys. It is made once per pass, not once per layer."""
        kind = (keys.dtype, keys.device)
        if kind not in self._made:
            allowed = self._allowed.to(keys.device)
            hidden = torch.full((), -math.inf, dtype=keys.dtype, device=keys.device)
            self._made[kind] = torch.where(allowed, torch.zeros_like(hidden), hidden)
        return self._made[kind]


class KVView(NamedTuple):
    """The K/V that some queries read.

    Attributes:
        states: keys and values, per layer [slots, heads, positions, width].
        mask: None if each query sees all keys, or if `is_causal` is True.
        is_causal: True if query i sees keys [0, i + 1).
    """

    states: LayerStates
    mask: Mask | None
    is_causal: bool = False


class AttentionPlan:
    """The writes and attention calls of one pass, equal in every layer.

    Args:
        segments: the feeds. Neighbors in the pass and in memory share calls.
        path: "kernel" attends all one-token feeds of a pool with Unspool's kernel, on a CPU; "loop" attends slot by
            slot; "masked" attends all one-token feeds of a pool in one masked call.
        device: of index tensors.

    Attributes:
        num_tokens: rows of the pass.
        copies, writes: the destinations of new K/V; each token is in exactly one of them.
        blocks: segments of several queries, attended one by one.
        runs: single queries of a "loop" pass, in the order of their rows.
        run_rows: the rows of these queries; a slice if they are consecutive.
        is_all_runs: True if the runs hold rows [0, num_tokens) in order.
        ranges: single queries of a "masked" pass.
        kernel_calls: single queries of a "kernel" pass, one call per pool, which also writes their keys and values.
    """

    def __init__(self, segments: Sequence[Segment], path: AttentionPath, device: torch.device) -> None:
        self.device = device
        self.num_tokens = sum(segment.width for segment in segments)
        segments = sorted(segments, key=lambda segment: segment.row)
        self.blocks = [segment for segment in segments if segment.width > 1 and not segment.invariant]
        # The kernel writes the keys and values of its queries itself.
        self._plan_writes(self.blocks if path == "kernel" else segments)
        singles = [
            query for segment in segments if segment.width == 1 or segment.invariant for query in segment.pieces(1)
        ]
        self.runs: list[DecodeRun] = []
        self.run_rows: slice | torch.Tensor = slice(0, 0)
        self.ranges: list[MaskedRange] = []
        self.kernel_calls: list[SlotAttention] = []
        if path == "kernel":
            self.kernel_calls = [SlotAttention(_bundles(each), pool.tensors) for pool, each in by_pool(singles)]
        elif path == "masked":
            self.ranges = [self._range(pool, group) for pool, group in by_pool(singles)]
        elif singles:
            self.runs = decode_runs(singles)
            self.run_rows = self._rows([segment.row for segment in singles])
        self.is_all_runs = isinstance(self.run_rows, slice) and self.run_rows == slice(0, self.num_tokens)
        self._views: dict[tuple[int, int, int | None, bool], KVView] = {}
        self._range_masks: dict[tuple[int, int | None], Mask] = {}

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)

    def _rows(self, rows: list[int]) -> slice | torch.Tensor:
        stop = rows[0] + len(rows)
        return slice(rows[0], stop) if rows == list(range(rows[0], stop)) else self._tensor(rows)

    def _plan_writes(self, segments: Sequence[Segment]) -> None:
        self.copies: list[SlotCopy] = []
        self.writes: list[SlotScatter] = []
        for pool, each in by_pool(segments):
            groups = copy_groups(each)
            short = [group for group in groups if group[0].width < LONG_SEGMENT]
            if len(short) > FEW_COPIES:
                groups = [group for group in groups if group[0].width >= LONG_SEGMENT]
                self.writes.append(self._write(pool, [segment for group in short for segment in group]))
            self.copies += map(self._copy, groups)

    def _copy(self, group: list[Segment]) -> SlotCopy:
        first, count = group[0], len(group)
        rows = slice(first.row, first.row + count * first.width)
        into = first.pool.views(slice(first.slot, first.slot + count), slice(first.start, first.stop))
        return SlotCopy(into, None if rows == slice(0, self.num_tokens) else rows, count > 1)

    def _write(self, pool: SlotPool, segments: list[Segment]) -> SlotScatter:
        rows = [segment.row + offset for segment in segments for offset in range(segment.width)]
        slots = [segment.slot for segment in segments for _ in range(segment.width)]
        positions = [segment.start + offset for segment in segments for offset in range(segment.width)]
        return SlotScatter(pool, self._rows(rows), self._tensor(slots), self._tensor(positions))

    def _range(self, pool: SlotPool, segments: list[Segment]) -> MaskedRange:
        first, stop = min(segment.slot for segment in segments), max(segment.slot for segment in segments) + 1
        lengths = [0] * (stop - first)
        for segment in segments:
            lengths[segment.slot - first] = segment.stop
        slots = self._tensor([segment.slot - first for segment in segments])
        rows = self._tensor([segment.row for segment in segments])
        return MaskedRange(pool, first, stop, slots, rows, self._tensor(lengths), max(lengths))

    def run_view(self, run: DecodeRun, window: int | None) -> KVView:
        """Return the K/V that the queries of a run read: the last `window` of them, None for all."""
        name = (run.row, 0, window, False)
        if name not in self._views:
            shortest, longest = min(run.lengths), max(run.lengths)
            first = 0 if window is None else max(0, shortest - window)
            slots = slice(run.first, run.first + len(run.lengths))
            mask = None
            if shortest < longest:
                lengths = self._tensor(list(run.lengths))[:, None, None, None]
                mask = Mask(seen(torch.arange(first, longest, device=self.device), lengths, window))
            self._views[name] = KVView(run.pool.views(slots, slice(first, longest)), mask)
        return self._views[name]

    def segment_view(self, segment: Segment, window: int | None, *, masked: bool) -> KVView:
        """Return the K/V that the queries of a segment read.

        Args:
            segment: of the pass, or a piece of one.
            window: the most keys per query; None for all.
            masked: True for a mask even if `is_causal` is enough.
        """
        name = (segment.row, segment.width, window, masked)
        if name not in self._views:
            slots = slice(segment.slot, segment.slot + 1)
            if segment.sees_whole_prefix(window) and not masked:
                self._views[name] = KVView(segment.pool.views(slots, slice(0, segment.stop)), None, is_causal=True)
            else:
                first = 0 if window is None else max(0, segment.start + 1 - window)
                queries = torch.arange(segment.start, segment.stop, device=self.device)[:, None]
                mask = Mask(seen(torch.arange(first, segment.stop, device=self.device), queries + 1, window))
                self._views[name] = KVView(segment.pool.views(slots, slice(first, segment.stop)), mask)
        return self._views[name]

    def range_mask(self, part: MaskedRange, window: int | None) -> Mask:
        """Return the keys that each slot of a range sees. --> [slots, 1, 1, keys]"""
        name = (id(part), window)
        if name not in self._range_masks:
            keys = torch.arange(part.longest, device=self.device)
            self._range_masks[name] = Mask(seen(keys, part.lengths[:, None, None, None], window))
        return self._range_masks[name]


def _bundles(queries: Sequence[Segment]) -> list[list[SlotQuery]]:
    """Return the queries of a pool for the kernel, those with a shared prefix in one bundle."""
    bundles: list[list[SlotQuery]] = []
    for prefix in shared_prefixes(queries, queries[0].pool.bytes_per_token):
        members, base = queries[prefix.first : prefix.stop], queries[prefix.first].slot
        found = [SlotQuery(query.row, query.slot, query.stop, base, prefix.length) for query in members]
        bundles += [found] if prefix.length else [[query] for query in found]
    return bundles


def seen(keys: torch.Tensor, lengths: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return whether each key position is in [length - window, length), or in [0, length) without a window.

    Args:
        keys: positions, [keys].
        lengths: keys up to each query, its own included; broadcast against `keys`.
        window: the most keys per query; None for all.
    """
    return keys < lengths if window is None else (keys < lengths) & (keys >= lengths - window)

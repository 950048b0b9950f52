"""The layout of one decoder pass over sequences of equal cached length, each in its own KV cache slot.

Some decoders take the cached length as a single number for the whole batch, so only sequences of equal length can share
a pass. Knows slots and encoded sources; knows neither models nor sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import torch

from unspool.kernels.attention import SlotAttention, SlotQuery
from unspool.runtimes.kv.pool import LayerStates, SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.seq2seq.encoder_cache import EncodedSource


class SlotRun(NamedTuple):
    """Rows in neighboring slots of a pool: row `rows.start + n` is in slot n of the run.

    Attributes:
        rows: of the pass.
        offsets: the slot of each row, if slots of other sequences lie between; else None.
        new: keys and values of the positions that the pass appends, per layer [slots, heads, width, head width].
        whole: those of all positions, [slots, heads, stop, head width].
    """

    rows: slice
    offsets: torch.Tensor | None
    new: LayerStates
    whole: LayerStates


class SourceGroup(NamedTuple):
    """Rows that read the same source. rows: a slice if they are neighbors, else their indices."""

    encoded: EncodedSource
    rows: slice | torch.Tensor


class EqualLengthBatch:
    """The rows of one pass, sorted by slot. Each has `start` cached positions and appends `width` tokens.

    Args:
        rows: slot and source of each row, sorted by `order`.
        start, width: in tokens, equal for all rows.
        spans_gaps: True attends over all slots from the first to the last of a pool in one call, which is faster on an
            accelerator. False makes one call per run of neighboring slots.

    Attributes:
        stop: positions after the pass, `start + width`.
        encoded: the source of each row.
        groups: the rows by source.
    """

    def __init__(self, rows: Sequence[tuple[Slot, EncodedSource]], start: int, width: int, *, spans_gaps: bool) -> None:
        assert [self.order(slot) for slot, _ in rows] == sorted(self.order(slot) for slot, _ in rows), "rows by slot"
        self.start, self.width, self.num_rows = start, width, len(rows)
        self.stop = start + width
        self._slots, self._spans_gaps = [slot for slot, _ in rows], spans_gaps
        self.encoded = [encoded for _, encoded in rows]
        self.groups = list(_source_groups(self.encoded))
        self._causal: torch.Tensor | None = None

    @staticmethod
    def order(slot: Slot) -> tuple[int, int]:
        """Return the sort key of a row."""
        return id(slot.pool), slot.index

    @cached_property
    def runs(self) -> list[SlotRun]:
        """The rows by slot."""
        return list(_slot_runs(self._slots, slice(self.start, self.stop), self._spans_gaps))

    @cached_property
    def kernel_calls(self) -> list[SlotAttention]:
        """One call of the attention kernel per pool. Its queries are all new tokens, row by row."""
        calls: dict[int, tuple[SlotPool, list[list[SlotQuery]]]] = {}
        for row, slot in enumerate(self._slots):
            _, bundles = calls.setdefault(id(slot.pool), (slot.pool, []))
            for at in range(self.width):
                query = SlotQuery(row * self.width + at, slot.index, self.start + at + 1, slot.index, 0)
                bundles.append([query])
        return [SlotAttention(bundles, pool.tensors) for pool, bundles in calls.values()]

    def causal(self, device: torch.device) -> torch.Tensor:
        """Return the causal mask: True if a new token sees a position. --> bool [width, stop]"""
        if self._causal is None:
            queries = torch.arange(self.start, self.stop, device=device)[:, None]
            self._causal = torch.arange(self.stop, device=device) <= queries
        return self._causal.to(device)


def _slot_runs(slots: Sequence[Slot], new: slice, spans_gaps: bool) -> Iterator[SlotRun]:
    begin = 0
    for end in range(1, len(slots) + 1):
        first, last = slots[begin], slots[end - 1]
        if end < len(slots) and slots[end].pool is last.pool and (spans_gaps or slots[end].index == last.index + 1):
            continue
        offsets = None
        if last.index - first.index != end - 1 - begin:
            offsets = torch.tensor([slot.index - first.index for slot in slots[begin:end]], device="cpu")
        run = slice(first.index, last.index + 1)
        views = (first.pool.views(run, positions) for positions in (new, slice(0, new.stop)))
        yield SlotRun(slice(begin, end), offsets, *views)
        begin = end


def _source_groups(encoded: Sequence[EncodedSource]) -> Iterator[SourceGroup]:
    rows: dict[int, list[int]] = {}
    for row, each in enumerate(encoded):
        rows.setdefault(each.number, []).append(row)
    for indices in rows.values():
        first, stop = indices[0], indices[-1] + 1
        are_neighbors = stop - first == len(indices)
        yield SourceGroup(encoded[first], slice(first, stop) if are_neighbors else torch.tensor(indices, device="cpu"))

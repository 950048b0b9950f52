"""One forward pass over slots: who writes where, and who attends over what.

All tokens of all feeds stand in one row; a feed is a span of it. A pass is planned once, and carried out in every layer
(caches.py). Knows nothing of models, nor of lengths beyond the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple, TypeAlias

import torch

from unspool.runtimes.pools import SlotPool

AttentionPath: TypeAlias = Literal["loop", "masked"]

# Longer spans are copied into their slots one by one; shorter ones share one indexed write, where there are several.
_LONG_SPAN = 16
_FEW_SPANS = 3
# A call of its own costs a query about as much as so many keys more (12 heads of 64).
_SPARE_KEYS = 64


class Span(NamedTuple):
    """A feed's place: `width` tokens from `row` of the pass on, at positions [start, stop) of slot `slot`.

    invariant: its queries must be attended one by one, so that each is computed the same way in any company.
    """

    pool: SlotPool
    slot: int
    start: int
    width: int
    row: int
    invariant: bool = False

    @property
    def stop(self) -> int:
        """The position behind the last token."""
        return self.start + self.width

    @property
    def rows(self) -> slice:
        """The span's rows of the pass."""
        return slice(self.row, self.row + self.width)


class Write(NamedTuple):
    """Tokens that go into one pool by one indexed write; rows is None for the whole pass in order."""

    pool: SlotPool
    rows: torch.Tensor | None
    slots: torch.Tensor
    positions: torch.Tensor


class Run(NamedTuple):
    """One query for each of some consecutive slots that hold about as many tokens.

    rows: of the pass, a slice where they are consecutive. lengths: keys that each query may see, its own included.
    """

    pool: SlotPool
    first: int
    lengths: tuple[int, ...]
    rows: slice | torch.Tensor


class Range(NamedTuple):
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


class Plan:
    """What one pass does in every layer.

    Args:
        spans: the feeds, in the order of their rows.
        num_rows: rows of the pass; those behind the last span are padding, and are neither cached nor attended.
        path: "loop" attends slot by slot; "masked" all one-token feeds of a pool in one call.
        device: where index tensors live.
    """

    def __init__(self, spans: Sequence[Span], num_rows: int, path: AttentionPath, device: torch.device) -> None:
        self.num_rows, self.device = num_rows, device
        self.num_tokens = sum(span.width for span in spans)
        short = [span for span in spans if span.width < _LONG_SPAN]
        short = short if len(short) > _FEW_SPANS else []
        self.long = [span for span in spans if span not in short] if short else list(spans)
        self.writes = [self._write(pool, group) for pool, group in _by_pool(short)]
        self.blocks = [span for span in spans if span.width > 1 and not span.invariant]
        singles = [query for span in spans if span.width == 1 or span.invariant for query in _queries(span)]
        self.runs: list[Run] = []
        self.ranges: list[Range] = []
        if path == "masked":
            self.ranges = [self._range(pool, group) for pool, group in _by_pool(singles)]
        else:
            self.runs = [self._run(run) for run in _runs(singles)]
        self.is_one_run = (
            len(self.runs) == 1
            and not (self.blocks or self.ranges)
            and self.num_tokens == num_rows
            and isinstance(self.runs[0].rows, slice)
        )
        self._masks: dict[tuple[int, int | None], torch.Tensor] = {}

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)

    def _write(self, pool: SlotPool, spans: list[Span]) -> Write:
        rows = [span.row + offset for span in spans for offset in range(span.width)]
        slots = [span.slot for span in spans for _ in range(span.width)]
        positions = [span.start + offset for span in spans for offset in range(span.width)]
        whole = rows == list(range(self.num_rows))
        return Write(pool, None if whole else self._tensor(rows), self._tensor(slots), self._tensor(positions))

    def _run(self, spans: list[Span]) -> Run:
        rows = [span.row for span in spans]
        consecutive = rows == list(range(rows[0], rows[0] + len(rows)))
        place = slice(rows[0], rows[0] + len(rows)) if consecutive else self._tensor(rows)
        return Run(spans[0].pool, spans[0].slot, tuple(span.start + 1 for span in spans), place)

    def _range(self, pool: SlotPool, spans: list[Span]) -> Range:
        first, stop = min(span.slot for span in spans), max(span.slot for span in spans) + 1
        lengths = [0] * (stop - first)
        for span in spans:
            lengths[span.slot - first] = span.start + 1
        slots = self._tensor([span.slot - first for span in spans])
        rows = self._tensor([span.row for span in spans])
        return Range(pool, first, stop, slots, rows, self._tensor(lengths), max(lengths))

    def span_keys(self, span: Span, window: int | None) -> tuple[int, int, torch.Tensor]:
        """Return which keys the queries of a span see: [first, stop), and of these bool [queries, keys]."""
        stop = span.stop
        first = 0 if window is None else max(0, span.start + 1 - window)
        key = (span.row, window)
        if key not in self._masks:
            queries = torch.arange(span.start, stop, device=self.device)[:, None]
            self._masks[key] = seen(torch.arange(first, stop, device=self.device), queries + 1, window)
        return first, stop, self._masks[key]

    def run_keys(self, run: Run, window: int | None) -> tuple[int, int, torch.Tensor | None]:
        """Return which keys the queries of a run see: [first, stop), and of these bool [slots, 1, 1, keys] or all."""
        shortest, longest = min(run.lengths), max(run.lengths)
        first = 0 if window is None else max(0, shortest - window)
        if shortest == longest:
            return first, longest, None
        key = (id(run), window)
        if key not in self._masks:
            lengths = self._tensor(list(run.lengths))[:, None, None, None]
            self._masks[key] = seen(torch.arange(first, longest, device=self.device), lengths, window)
        return first, longest, self._masks[key]


def seen(keys: torch.Tensor, lengths: torch.Tensor, window: int | None) -> torch.Tensor:
    """Return whether each key is among the last `window` (None: all) of the first `lengths`."""
    return keys < lengths if window is None else (keys < lengths) & (keys >= lengths - window)


def _by_pool(spans: Sequence[Span]) -> list[tuple[SlotPool, list[Span]]]:
    groups: dict[int, tuple[SlotPool, list[Span]]] = {}
    for span in spans:
        groups.setdefault(id(span.pool), (span.pool, []))[1].append(span)
    return list(groups.values())


def _queries(span: Span) -> list[Span]:
    return [span._replace(start=span.start + j, width=1, row=span.row + j) for j in range(span.width)]


def _runs(singles: Sequence[Span]) -> list[list[Span]]:
    """Join queries of consecutive slots where a call of their own would cost more than the keys they share in vain."""
    runs: list[list[Span]] = []
    longest = total = 0
    for span in sorted(singles, key=lambda span: (id(span.pool), span.slot)):
        last = runs[-1][-1] if runs else None
        if last is not None and last.pool is span.pool and last.slot + 1 == span.slot:
            count, most, keys = len(runs[-1]) + 1, max(longest, span.start), total + span.start
            if not (last.invariant or span.invariant) and count * most - keys <= _SPARE_KEYS * (count - 1):
                runs[-1].append(span)
                longest, total = most, keys
                continue
        runs.append([span])
        longest = total = span.start
    return runs

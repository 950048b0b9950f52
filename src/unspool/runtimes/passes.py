"""One forward pass over slots: who writes where, and who attends over what.

A pass is planned once (`Plan`) and carried out in every layer by `SlotCache`, which transformers sees as its cache.
All tokens of all feeds stand in one row; a feed is a span of it. Knows nothing of lengths beyond the pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from transformers.cache_utils import Cache

from unspool.runtimes.attention import Terms, attend, attend_plainly
from unspool.runtimes.pools import LayerLayout, SlotPool

AttentionPath: TypeAlias = Literal["loop", "masked"]

# From here on, a span is copied into its slot by itself; shorter ones share one indexed write.
_LONG_SPAN = 16


class Span(NamedTuple):
    """A feed's place: `count` tokens from `row` of the pass on, at positions [start, start + count) of a slot.

    invariant: its queries must be attended one by one, so that each is computed the same way in any company.
    """

    pool: SlotPool
    index: int
    start: int
    count: int
    row: int
    invariant: bool = False


class _Write(NamedTuple):
    """Tokens that go into one pool by one indexed write; rows is None for the whole pass in order."""

    pool: SlotPool
    rows: torch.Tensor | None
    slots: torch.Tensor
    positions: torch.Tensor


class _Run(NamedTuple):
    """One query for each of some consecutive slots of equal length. rows: a slice where they are consecutive."""

    pool: SlotPool
    first: int
    count: int
    length: int
    rows: slice | torch.Tensor


class _Range(NamedTuple):
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
        self.num_tokens = sum(span.count for span in spans)
        self.long = [span for span in spans if span.count >= _LONG_SPAN]
        short = [span for span in spans if span.count < _LONG_SPAN]
        self.writes = [self._write(pool, group) for pool, group in _by_pool(short)]
        self.blocks = [span for span in spans if span.count > 1 and not span.invariant]
        singles = [query for span in spans if span.count == 1 or span.invariant for query in _queries(span)]
        self.runs: list[_Run] = []
        self.ranges: list[_Range] = []
        if path == "masked":
            self.ranges = [self._range(pool, group) for pool, group in _by_pool(singles)]
        else:
            self.runs = [self._run(run) for run in _runs(singles)]
        self._masks: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def _tensor(self, numbers: list[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self.device)

    def _write(self, pool: SlotPool, spans: list[Span]) -> _Write:
        rows = [span.row + offset for span in spans for offset in range(span.count)]
        slots = [span.index for span in spans for _ in range(span.count)]
        positions = [span.start + offset for span in spans for offset in range(span.count)]
        whole = rows == list(range(self.num_rows))
        return _Write(pool, None if whole else self._tensor(rows), self._tensor(slots), self._tensor(positions))

    def _run(self, spans: list[Span]) -> _Run:
        rows = [span.row for span in spans]
        consecutive = rows == list(range(rows[0], rows[0] + len(rows)))
        place = slice(rows[0], rows[0] + len(rows)) if consecutive else self._tensor(rows)
        return _Run(spans[0].pool, spans[0].index, len(spans), spans[0].start + 1, place)

    def _range(self, pool: SlotPool, spans: list[Span]) -> _Range:
        first, stop = min(span.index for span in spans), max(span.index for span in spans) + 1
        lengths = [0] * (stop - first)
        for span in spans:
            lengths[span.index - first] = span.start + 1
        slots = self._tensor([span.index - first for span in spans])
        rows = self._tensor([span.row for span in spans])
        return _Range(pool, first, stop, slots, rows, self._tensor(lengths), max(lengths))

    def mask(self, span: Span, window: int | None) -> tuple[int, torch.Tensor]:
        """Return the first key that any query of the span sees, and which it sees from there: bool [queries, keys]."""
        stop = span.start + span.count
        first = 0 if window is None else max(0, span.start + 1 - window)
        key = (span.start, span.count, window)
        if key not in self._masks:
            queries = torch.arange(span.start, stop, device=self.device)[:, None]
            keys = torch.arange(first, stop, device=self.device)
            allowed = keys <= queries
            if window is not None:
                allowed &= keys > queries - window
            self._masks[key] = allowed
        return first, self._masks[key]


def _by_pool(spans: Sequence[Span]) -> list[tuple[SlotPool, list[Span]]]:
    groups: dict[int, tuple[SlotPool, list[Span]]] = {}
    for span in spans:
        groups.setdefault(id(span.pool), (span.pool, []))[1].append(span)
    return list(groups.values())


def _queries(span: Span) -> list[Span]:
    return [span._replace(start=span.start + j, count=1, row=span.row + j) for j in range(span.count)]


def _runs(singles: Sequence[Span]) -> list[list[Span]]:
    """Join queries of consecutive slots with as many keys; an invariant one stands alone."""
    runs: list[list[Span]] = []
    for span in sorted(singles, key=lambda span: (id(span.pool), span.index)):
        last = runs[-1][-1] if runs else None
        joins = last is not None and last.pool is span.pool and last.index + 1 == span.index
        if last is not None and joins and last.start == span.start and not (last.invariant or span.invariant):
            runs[-1].append(span)
        else:
            runs.append([span])
    return runs


class SlotCache(Cache):  # type: ignore[misc]
    """What transformers takes for its cache during one pass: writes keys and values into slots, and attends.

    After the pass, `finite` says which tokens' values were finite: bool [tokens].
    """

    def __init__(self, plan: Plan, num_layers: int) -> None:
        super().__init__(layers=[])
        self.plan, self.num_layers = plan, num_layers
        self.finite: torch.Tensor | None = None
        self._layer = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [1, heads, tokens, width], into the slots."""
        self._layer = layer_idx
        for span in self.plan.long:
            stop, end = span.start + span.count, span.row + span.count
            span.pool.keys[layer_idx][span.index, :, span.start : stop] = key_states[0, :, span.row : end]
            span.pool.values[layer_idx][span.index, :, span.start : stop] = value_states[0, :, span.row : end]
        for write in self.plan.writes:
            _store(write, write.pool.keys[layer_idx], key_states)
            _store(write, write.pool.values[layer_idx], value_states)
        if layer_idx == self.num_layers - 1:
            # What is not finite in any earlier layer has made this layer's input, hence its value, not finite.
            self.finite = value_states[0].float().sum((0, 2)).isfinite()
        return key_states, value_states

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Attend every token of the pass over its own slot. --> [rows, heads, value width]"""
        plan, layer = self.plan, self._layer
        out = torch.empty(plan.num_rows, query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device)
        out[plan.num_tokens :] = 0
        for run in plan.runs:
            out[run.rows] = _attend_run(run, query, layer, terms)
        for part in plan.ranges:
            out[part.rows] = _attend_range(part, query, layer, terms)
        for span in plan.blocks:
            out[span.row : span.row + span.count] = self._attend_block(span, query, layer, terms)
        return out

    def _attend_block(self, span: Span, query: torch.Tensor, layer: int, terms: Terms) -> torch.Tensor:
        stop = span.start + span.count
        is_causal = span.start == 0 and (terms.window is None or terms.window >= stop)
        first, allowed = (0, None) if is_causal else self.plan.mask(span, terms.window)
        keys = span.pool.keys[layer][span.index : span.index + 1, :, first:stop]
        values = span.pool.values[layer][span.index : span.index + 1, :, first:stop]
        queries = query[:, :, span.row : span.row + span.count].to(keys.dtype)
        return attend(queries, keys, values, terms, allowed=allowed, is_causal=is_causal)[0].transpose(0, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are always given, and no mask is built from a length."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys and offset of a mask, which is never built."""
        return query_length, 0

    def __len__(self) -> int:
        return self.num_layers


def _store(write: _Write, cached: torch.Tensor, states: torch.Tensor) -> None:
    tokens = states[0].transpose(0, 1)  # --> [tokens, heads, width]
    rows = tokens if write.rows is None else tokens[write.rows]
    cached[write.slots, :, write.positions] = rows.to(cached.dtype)


def _attend_run(run: _Run, query: torch.Tensor, layer: int, terms: Terms) -> torch.Tensor:
    first = 0 if terms.window is None else max(0, run.length - terms.window)
    keys = run.pool.keys[layer][run.first : run.first + run.count, :, first : run.length]
    values = run.pool.values[layer][run.first : run.first + run.count, :, first : run.length]
    queries = query[0, :, run.rows].transpose(0, 1)[:, :, None].to(keys.dtype)  # --> [slots, heads, 1, width]
    return attend(queries, keys, values, terms)[:, :, 0].to(query.dtype)


def _attend_range(part: _Range, query: torch.Tensor, layer: int, terms: Terms) -> torch.Tensor:
    keys = part.pool.keys[layer][part.first : part.stop, :, : part.longest]
    values = part.pool.values[layer][part.first : part.stop, :, : part.longest]
    queries = keys.new_zeros(part.stop - part.first, query.shape[1], 1, query.shape[-1])
    queries[part.slots, :, 0] = query[0, :, part.rows].transpose(0, 1).to(keys.dtype)
    positions = torch.arange(part.longest, device=keys.device)
    lengths = part.lengths.to(keys.device)[:, None]
    allowed = positions < lengths
    if terms.window is not None:
        allowed &= positions >= lengths - terms.window
    out = attend_plainly(queries, keys, values, terms, allowed[:, None, None])
    return out[part.slots, :, 0].to(query.dtype)


class LayoutCache(Cache):  # type: ignore[misc]
    """Notes what each layer would cache, while a model runs one token: a layer's attention is then its own value."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layouts: dict[int, LayerLayout] = {}
        self.windows: dict[int, int | None] = {}
        self.num_calls = 0
        self._layer = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Note one layer's shapes."""
        self._layer = layer_idx
        heads, widths = key_states.shape[1], (key_states.shape[-1], value_states.shape[-1])
        self.layouts[layer_idx] = LayerLayout(heads, *widths, key_states.dtype, key_states.device)
        return key_states, value_states

    def attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, terms: Terms) -> torch.Tensor:
        """Return each token's own value. --> [tokens, heads, value width]"""
        self.windows[self._layer] = terms.window
        self.num_calls += 1
        return value[0].repeat_interleave(query.shape[1] // value.shape[1], 0).transpose(0, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: nothing is cached."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys and offset of a mask, which is never built."""
        return query_length, 0

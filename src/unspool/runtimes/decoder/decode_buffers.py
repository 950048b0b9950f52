"""Buffers of a decode step with fixed shapes and addresses, as CUDA graphs need them.

So the same work, done again on the same tensors, is the next step. Owns the buffers, and what stands in for a cache;
knows neither models, nor how work is repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias
from weakref import ref

import torch

from unspool.runtimes.kv.attention import AttentionParams, manual_attention
from unspool.runtimes.kv.attention_plan import Mask, seen
from unspool.runtimes.kv.cache import UnmaskedCache
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.pool import SlotPool
from unspool.runtimes.kv.segments import Segment

MOST_ROWS = 64
"""Sequences of one step: with more, the work on them outweighs what it costs to ask for it."""

# Keys are attended in steps of a quarter of what a slot holds, and of no fewer than these.
_LEAST_KEYS = 256
# A gathered key is read, written and read again.
_COST_OF_GATHERING = 3


class Part(NamedTuple):
    """Rows of a static pass whose sequences lie in one pool.

    pool: not kept alive. first: of the rows. rows: how many, padding included. keys: positions of a slot that are read.
    """

    pool: ref[SlotPool]
    first: int
    rows: int
    keys: int

    @property
    def span(self) -> slice:
        """The part's rows."""
        return slice(self.first, self.first + self.rows)


Form: TypeAlias = tuple[Part, ...]
"""All that is fixed in a static pass. Passes of one form can do the same work."""


def step_shape(batch: Batch, least_rows: int = 1) -> Form | None:
    """Return the form of a pass; None where it is no plain decode step, or has no room for padding.

    least_rows: fewest rows of a part.
    """
    if batch.hidden is not None or batch.inner is not None or batch.invariant:
        return None
    if len(batch.spans) > MOST_ROWS or any(span.width > 1 for span in batch.spans):
        return None
    parts: list[Part] = []
    for pool, spans in _by_pool(batch):
        rows = _power_of_two(max(len(spans), least_rows))
        if rows > len(spans) and _wrapped(spans) is None:
            return None
        parts.append(Part(ref(pool), _end(parts), rows, _num_keys(spans, pool.capacity)))
    return tuple(parts)


def _by_pool(batch: Batch) -> list[tuple[SlotPool, list[Segment]]]:
    """Return the spans in the order of their rows, cut where the pool changes."""
    in_order = sorted(batch.spans, key=lambda span: span.row)
    groups = (list(group) for _, group in groupby(in_order, key=lambda span: id(span.pool)))
    return [(group[0].pool, group) for group in groups]


def _wrapped(spans: Sequence[Segment]) -> Segment | None:
    """Return a span that padding may copy: the last position of its slot is still behind its sequence."""
    return next((span for span in spans if span.stop < span.pool.capacity), None)


def _power_of_two(count: int) -> int:
    return 1 << (count - 1).bit_length()


def _num_keys(spans: Sequence[Segment], capacity: int) -> int:
    step = min(capacity, max(_LEAST_KEYS, capacity // 4))
    return -(-max(span.stop for span in spans) // step) * step


def _end(parts: Sequence[Part]) -> int:
    return parts[-1].first + parts[-1].rows if parts else 0


class Facts(NamedTuple):
    """What a step is about, [rows] each, int64.

    ids, positions: of the tokens. slots: where their sequences lie. writes: positions that keys and values go to.
    seats: the slot that a row's query stands for, the one behind the last slot for padding. keep: rows whose logits are
    wanted, in the order wanted, then any.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    writes: torch.Tensor
    seats: torch.Tensor
    keep: torch.Tensor


class StaticPass:
    """A decode step in buffers of fixed shape.

    Padding repeats a row of its own part, but for where it writes: to the last position of the same slot, which that
    row's sequence has not reached yet. So nothing goes wrong in it that does not go wrong in the row, and it touches
    no key that anybody reads.

    Args:
        form: of the passes.
        device: where the model and its keys and values lie.

    Attributes:
        facts: views of the buffers.
        told: what was filled in last, as plain numbers.
    """

    def __init__(self, form: Form, device: torch.device) -> None:
        self.form, self.num_rows = form, _end(form)
        # Made in the caller's inference mode, they could not be written to outside of it.
        with torch.inference_mode(False):
            self._buffer = torch.zeros(len(Facts._fields), self.num_rows, dtype=torch.int64, device=device)
        self.facts = Facts(*self._buffer.unbind(0))
        self.told: list[list[int]] = []
        self._rows: dict[int, int] = {}
        self._hosts: list[Segment] = []

    def fill(self, batch: Batch) -> None:
        """Take over a pass of this form: one copy to the device."""
        columns: list[tuple[int, ...]] = []
        self._rows, self._hosts = {}, []
        for part, (pool, spans) in zip(self.form, _by_pool(batch), strict=True):
            for span in spans:
                self._rows[span.row] = len(columns)
                columns.append(self._column(batch, span, span.start, span.slot))
            if missing := part.rows - len(spans):
                wrapped = _wrapped(spans)
                assert wrapped is not None, "a form has no room for padding"
                self._hosts.append(wrapped)
                columns += [self._column(batch, wrapped, pool.capacity - 1, pool.num_slots)] * missing
        kept = [self._rows[row] for row in batch.asked]
        kept += [0] * (self.num_rows - len(kept))
        self.told = [*map(list, zip(*columns, strict=True)), kept]
        self._buffer.copy_(torch.tensor(self.told, device="cpu"))

    def _column(self, batch: Batch, span: Segment, write: int, seat: int) -> tuple[int, ...]:
        return batch.tokens[span.row], batch.positions[span.row], span.slot, write, seat

    def row_of(self, span: Segment) -> int:
        """Return the row of a span of the pass that was filled in last."""
        return self._rows[span.row]

    def clear_padding(self) -> None:
        """Clear what padding has written, which need not be finite where a row is not."""
        for wrapped in self._hosts:
            wrapped.pool.zero(wrapped.slot, wrapped.pool.capacity - 1, wrapped.pool.capacity)


class StaticCache(UnmaskedCache):
    """What transformers takes for its cache during one static pass.

    After the pass, `finite` says which rows' values were finite: bool [rows].
    """

    def __init__(self, static: StaticPass, num_layers: int) -> None:
        super().__init__()
        self._facts, self._num_layers, self._layer = static.facts, num_layers, 0
        self._parts = [(part, _alive(part)) for part in static.form]
        self._masks: dict[tuple[int, int | None], Mask] = {}
        self.finite: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [1, heads, rows, width], into the slots."""
        self._layer = layer_idx
        for part, pool in self._parts:
            place = (self._facts.slots[part.span], self._facts.writes[part.span])
            for cached, states in ((pool.keys, key_states), (pool.values, value_states)):
                rows = states[0, :, part.span].transpose(0, 1)  # --> [rows, heads, width]
                cached[layer_idx].transpose(1, 2).index_put_(place, rows.to(cached[layer_idx].dtype))
        if layer_idx == self._num_layers - 1:
            # As in SlotCache: what is not finite in any earlier layer has come as far as here.
            self.finite = value_states[0].sum((0, 2), dtype=torch.float32).isfinite()
        return key_states, value_states

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend every row over its own slot. --> [rows, heads, value width]"""
        queries = query.transpose(0, 2)  # --> [rows, heads, 1, width]
        found = [self._attend_part(index, queries[part.span], params) for index, (part, _) in enumerate(self._parts)]
        return found[0] if len(found) == 1 else torch.cat(found)

    def _attend_part(self, index: int, queries: torch.Tensor, params: AttentionParams) -> torch.Tensor:
        part, pool = self._parts[index]
        keys = pool.keys[self._layer][:, :, : part.keys]
        values = pool.values[self._layer][:, :, : part.keys]
        mask = self._mask(index, params.window).beside(keys)
        slots, seats = self._facts.slots[part.span], self._facts.seats[part.span]
        own = queries.to(keys.dtype)
        if _gathers(part, pool):
            out = manual_attention(own, keys.index_select(0, slots), values.index_select(0, slots), params, mask)
        else:
            spread = own.new_zeros(pool.num_slots + 1, *own.shape[1:]).index_put_((seats,), own)
            out = manual_attention(spread[:-1], keys, values, params, mask).index_select(0, slots)
        return out[:, :, 0].to(queries.dtype)

    def _mask(self, index: int, window: int | None) -> Mask:
        """Return what the slots of a part see, or its rows where their slots are gathered. --> [either, 1, 1, keys]"""
        name = (index, window)
        if name not in self._masks:
            part, pool = self._parts[index]
            lengths = self._facts.positions[part.span] + 1
            if not _gathers(part, pool):
                # A slot without a query sees one key: to see none would make it NaN.
                each = lengths.new_ones(pool.num_slots + 1)
                lengths = each.index_put_((self._facts.seats[part.span],), lengths)[:-1]
            keys = torch.arange(part.keys, device=lengths.device)
            self._masks[name] = Mask(seen(keys, lengths[:, None, None, None], window))
        return self._masks[name]

    def __len__(self) -> int:
        return self._num_layers


def _alive(part: Part) -> SlotPool:
    pool = part.pool()
    assert pool is not None, "a pool is gone that a static pass was made for"
    return pool


def _gathers(part: Part, pool: SlotPool) -> bool:
    """Return whether the slots of a part's rows are copied side by side, rather than all of its pool being read."""
    return _COST_OF_GATHERING * part.rows < pool.num_slots

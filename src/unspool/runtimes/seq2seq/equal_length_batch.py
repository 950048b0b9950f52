"""One pass over sequences of equal length, each in its own slot: who writes where, and who attends over what.

Decoders that know the past by its length alone, a single number for the whole batch, can share a pass among sequences
of equal length. Owns the layout of such a pass and the function registered with transformers' AttentionInterface. Knows
slots and encoded sources, no models and no sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from transformers import AttentionInterface
from transformers.cache_utils import Cache, EncoderDecoderCache

from unspool.errors import ModelError
from unspool.runtimes.kv.pool import SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.seq2seq.encoder_cache import EncodedSource

ATTENTION_NAME = "unspool_buckets"


class Run(NamedTuple):
    """Rows whose slots lie side by side: slot `first + n` belongs to row `rows.start + n`.

    With `places`, slots that take no part lie between: row `rows.start + n` is slot `first + places[n]`.
    """

    pool: SlotPool
    first: int
    stop: int
    rows: slice
    places: torch.Tensor | None


class Shared(NamedTuple):
    """Rows that read one source; a slice where they stand side by side."""

    encoded: EncodedSource
    rows: slice | torch.Tensor


class EqualLengthBatch:
    """The rows of one pass, by slot. Each holds `start` positions and takes `width` more.

    Args:
        rows: slot and source of each row, in the order of `order`.
        start, width: the same for all.
        spans_gaps: whether one call shall attend over all slots from the first to the last of a pool, as an accelerator
            likes it, rather than one call for each unbroken run.
    """

    def __init__(self, rows: Sequence[tuple[Slot, EncodedSource]], start: int, width: int, *, spans_gaps: bool) -> None:
        assert [self.order(slot) for slot, _ in rows] == sorted(self.order(slot) for slot, _ in rows), "rows by slot"
        self.start, self.width, self.num_rows = start, width, len(rows)
        self.stop = start + width
        slots = [slot for slot, _ in rows]
        self.runs = list(_runs(slots, spans_gaps))
        self.encoded = [encoded for _, encoded in rows]
        self.shared = list(_shared(self.encoded))
        self._causal: torch.Tensor | None = None

    @staticmethod
    def order(slot: Slot) -> tuple[int, int]:
        """Return the key by which rows are sorted."""
        return id(slot.pool), slot.index

    def causal(self, device: torch.device) -> torch.Tensor:
        """Return which positions each new token sees. --> bool [width, stop]"""
        if self._causal is None:
            queries = torch.arange(self.start, self.stop, device=device)[:, None]
            self._causal = torch.arange(self.stop, device=device) <= queries
        return self._causal.to(device)


def _runs(slots: Sequence[Slot], spans_gaps: bool) -> Iterator[Run]:
    begin = 0
    for end in range(1, len(slots) + 1):
        first, last = slots[begin], slots[end - 1]
        if end < len(slots) and slots[end].pool is last.pool and (spans_gaps or slots[end].index == last.index + 1):
            continue
        unbroken = last.index - first.index == end - 1 - begin
        places = (
            None if unbroken else torch.tensor([slot.index - first.index for slot in slots[begin:end]], device="cpu")
        )
        yield Run(first.pool, first.index, last.index + 1, slice(begin, end), places)
        begin = end


def _shared(encoded: Sequence[EncodedSource]) -> Iterator[Shared]:
    rows: dict[int, list[int]] = {}
    for row, each in enumerate(encoded):
        rows.setdefault(each.number, []).append(row)
    for places in rows.values():
        first, stop = places[0], places[-1] + 1
        unbroken = stop - first == len(places)
        yield Shared(encoded[first], slice(first, stop) if unbroken else torch.tensor(places, device="cpu"))


class SelfCache(Cache):
    """What transformers takes for the decoder's own cache during one pass: writes keys and values into slots.

    Args:
        bucket: the pass.
        num_layers: of the decoder.
        gives_back: whether the model attends by itself, and so needs the keys and values of all positions; else it
            gets stand-ins of that shape.

    After the pass, `finite` says which rows' newest values were finite: bool [rows].
    """

    def __init__(self, batch: EqualLengthBatch, num_layers: int, *, gives_back: bool) -> None:
        super().__init__(layers=[])
        self.batch, self.num_layers, self._gives_back = batch, num_layers, gives_back
        self.finite: torch.Tensor | None = None
        self.layer, self.is_fresh = 0, False

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [rows, heads, width, head width], into the slots."""
        self.layer, self.is_fresh = layer_idx, True
        for run in self.batch.runs:
            _write(run, run.pool.keys[layer_idx], key_states, self.batch)
            _write(run, run.pool.values[layer_idx], value_states, self.batch)
        if layer_idx == self.num_layers - 1:
            # What is not finite in any earlier layer has made this layer's input, hence its value, not finite.
            self.finite = value_states.float().sum((1, 2, 3)).isfinite()
        if not self._gives_back:
            return self._stand_in(key_states), self._stand_in(value_states)
        keys = [_read(run, run.pool.keys[layer_idx], self.batch.stop) for run in self.batch.runs]
        values = [_read(run, run.pool.values[layer_idx], self.batch.stop) for run in self.batch.runs]
        return _joined(keys), _joined(values)

    def _stand_in(self, states: torch.Tensor) -> torch.Tensor:
        # A model that builds a position bias takes the number of positions from here.
        return states[:, :, :1].expand(-1, -1, self.batch.stop, -1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions cached before this pass."""
        return self.batch.start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """The position of the first new token."""
        return self.batch.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys and offset of a mask over all positions."""
        return self.batch.start + query_length, 0

    def __len__(self) -> int:
        return self.num_layers


def _write(run: Run, cached: torch.Tensor, states: torch.Tensor, batch: EqualLengthBatch) -> None:
    rows = states[run.rows].to(cached.dtype)
    if run.places is None:
        cached[run.first : run.stop, :, batch.start : batch.stop] = rows
    else:
        cached[run.first + run.places.to(cached.device), :, batch.start : batch.stop] = rows


def _read(run: Run, cached: torch.Tensor, stop: int) -> torch.Tensor:
    if run.places is None:
        return cached[run.first : run.stop, :, :stop]
    return cached[run.first + run.places.to(cached.device), :, :stop]


def _joined(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class _Layer(NamedTuple):
    keys: torch.Tensor
    values: torch.Tensor


class CrossCache(Cache):
    """What transformers takes for the keys and values of the sources, all of them there before the pass."""

    def __init__(self, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__(layers=[])
        found: Any = [_Layer(*layer) for layer in layers]
        self.layers = found

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Positions of the sources: never 0, so that nothing is computed anew."""
        layer: Any = self.layers[layer_idx]
        return int(layer.keys.shape[2])


class CrossStacks:
    """Keys and values of several sources of equal length in one tensor a layer, kept while the same rows go on."""

    def __init__(self) -> None:
        self._rows: tuple[int, ...] = ()
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def of(self, encoded: Sequence[EncodedSource]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return each layer's keys and values, [rows, heads, length, width]; a view where all rows read one source."""
        first = encoded[0]
        if all(each is first for each in encoded):
            return [
                (key.expand(len(encoded), -1, -1, -1), value.expand(len(encoded), -1, -1, -1))
                for key, value in zip(first.keys, first.values, strict=True)
            ]
        rows = tuple(each.number for each in encoded)
        if rows != self._rows:
            self._rows = rows
            self._layers = [
                (torch.cat([each.keys[n] for each in encoded]), torch.cat([each.values[n] for each in encoded]))
                for n in range(len(first.keys))
            ]
        return self._layers

    def forget(self) -> None:
        """Give the memory back."""
        self._rows, self._layers = (), []


class Attends(Protocol):
    """What stands behind the registered function during one forward."""

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Return [rows, heads, width, value width]; query, key, value: [rows, heads, positions, width] of one layer."""
        ...


class EqualLengthAttention:
    """Attends over slots after the cache was written to, and over the sources otherwise: a decoder layer does both."""

    def __init__(self, cache: SelfCache) -> None:
        self._cache, self._bucket = cache, cache.batch

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend one layer; see `Attends`."""
        runs, shared = self._bucket.runs, self._bucket.shared
        is_fresh, self._cache.is_fresh = self._cache.is_fresh, False
        if is_fresh and len(runs) == 1:
            return self._over_slots(runs[0], query, scaling, bias)
        # The bias of a stand-in for the source speaks of nothing: decoders have none for what lies outside of them.
        if not is_fresh and len(shared) == 1:
            return self._over_source(shared[0].encoded, query, scaling)
        out = query.new_empty(*query.shape[:3], value.shape[-1])
        if is_fresh:
            for run in runs:
                out[run.rows] = self._over_slots(run, query[run.rows], scaling, bias)
        else:
            for each in shared:
                out[each.rows] = self._over_source(each.encoded, query[each.rows], scaling)
        return out

    def _over_slots(
        self, run: Run, query: torch.Tensor, scaling: float | None, bias: torch.Tensor | None
    ) -> torch.Tensor:
        layer, stop = self._cache.layer, self._bucket.stop
        keys = run.pool.keys[layer][run.first : run.stop, :, :stop]
        values = run.pool.values[layer][run.first : run.stop, :, :stop]
        queries = query.to(keys.dtype)
        if run.places is not None:
            queries = keys.new_zeros(keys.shape[0], *query.shape[1:])
            queries[run.places] = query.to(keys.dtype)
        out = self._scaled_dot_product(queries, keys, values, scaling, bias)
        return (out if run.places is None else out[run.places]).to(query.dtype)

    def _scaled_dot_product(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        is_grouped = query.shape[1] != key.shape[1]
        mask = None if bias is None else bias.to(key.dtype)
        if self._bucket.width > 1:
            allowed = self._bucket.causal(key.device)
            mask = allowed if mask is None else mask.masked_fill(~allowed, -math.inf)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=is_grouped)

    def _over_source(self, encoded: EncodedSource, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        keys, values = encoded.keys[self._cache.layer], encoded.values[self._cache.layer]
        rows, heads, width, size = query.shape
        # Rows become further queries of one row, so that the source is read once for all of them.
        queries = query.to(keys.dtype).transpose(0, 1).reshape(1, heads, rows * width, size)
        is_grouped = heads != keys.shape[1]
        out = F.scaled_dot_product_attention(queries, keys, values, scale=scaling, enable_gqa=is_grouped)
        return out.view(heads, rows, width, -1).transpose(0, 1).to(query.dtype)


class FirstTokenAttention:
    """Attends over what it is given, and counts how often it is asked to: for the first token of a decoder."""

    def __init__(self) -> None:
        self.num_calls = 0

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scaling: float | None,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """Attend one layer; see `Attends`."""
        assert query.shape[2] == 1, "only a first token sees everything"
        self.num_calls += 1
        mask = None if bias is None else bias.to(key.dtype)
        is_grouped = query.shape[1] != key.shape[1]
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=is_grouped)


_ACTIVE: ContextVar[Attends | None] = ContextVar("unspool_bucket_attention", default=None)


@contextmanager
def attending(target: Attends) -> Iterator[None]:
    """Let decoders set to `ATTENTION_NAME` attend through `target`, in this thread and while the context lasts."""
    token = _ACTIVE.set(target)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def equal_length_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    position_bias: torch.Tensor | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls in every attention layer of the decoder. --> [rows, width, heads, value width]

    Raises:
        ModelError: called outside of a forward of ours, or with something that it would have to ignore.
    """
    target = _ACTIVE.get()
    if target is None:
        raise ModelError("this copy of the model belongs to unspool and runs only inside it: call your own model")
    others = {"a mask": attention_mask, "a window": sliding_window, "a softcap": softcap, "sinks": s_aux}
    if given := [name for name, value in others.items() if value is not None]:
        raise ModelError(f"{type(module).__name__} attends with {given[0]} of its own, which buckets do not support")
    return target.attend(query, key, value, scaling, position_bias).transpose(1, 2), None


AttentionInterface.register(ATTENTION_NAME, equal_length_attention)


def joint_cache(own: SelfCache, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> EncoderDecoderCache:
    """Return what an encoder-decoder takes for its whole cache; layers: keys and values of the sources."""
    return EncoderDecoderCache(own, CrossCache(layers))

"""The KV cache that transformers sees during one pass: it executes an AttentionPlan in every layer.

Knows the plan and the pools. Does not know the model or the owners of slots.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from transformers.cache_utils import Cache

from unspool.kernels.attention import SlotAttention, attends
from unspool.runtimes.kv.attention import (
    AttentionParams,
    Heads,
    attend,
    cache_dtype,
    manual_attention,
)
from unspool.runtimes.kv.attention_plan import (
    AttentionPlan,
    KVView,
    Mask,
    MaskedRange,
    SlotCopy,
    SlotScatter,
    seen,
)
from unspool.runtimes.kv.pool import LayerLayout
from unspool.runtimes.kv.segments import Segment
from unspool.tuning import MAX_BLOCK_QUERIES, MAX_MANUAL_SCORES, MIN_WINDOW_QUERIES


class UnmaskedCache(Cache):
    """A cache that reports length 0, so that the model builds no mask. Positions are always given."""

    supported_params: ClassVar[frozenset[str]] = frozenset({"window", "softcap", "sinks"})

    def __init__(self) -> None:
        super().__init__(layers=[])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return 0, whatever is cached."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return keys and offset of a mask that is never built."""
        return query_length, 0


class SlotCache(UnmaskedCache):
    """The KV cache of one pass: writes keys and values into slots, and attends over slots."""

    def __init__(self, plan: AttentionPlan, num_layers: int) -> None:
        super().__init__()
        self.plan, self.num_layers = plan, num_layers
        self._sums: torch.Tensor | None = None  # of the values of each token, [tokens]
        self._layer = 0
        self._states: tuple[torch.Tensor, torch.Tensor]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [1, heads, tokens, width], into the slots.

        The kernel writes those of its queries later, when it attends.
        """
        self._layer, self._states = layer_idx, (key_states, value_states)
        for copy in self.plan.copies:
            copy.into.keys[layer_idx].copy_(_copied(copy, key_states))
            copy.into.values[layer_idx].copy_(_copied(copy, value_states))
        for write in self.plan.writes:
            _store(write, write.pool.keys[layer_idx], key_states)
            _store(write, write.pool.values[layer_idx], value_states)
        if layer_idx == self.num_layers - 1 and self.kernel_call is None:
            # A nonfinite number in an earlier layer makes the input of the last layer nonfinite, and so its value.
            self._sums = value_states[0].sum((0, 2), dtype=torch.float32)
        return key_states, value_states

    def finite_rows(self) -> list[bool]:
        """Return, behind a pass, whether all values of each token were finite."""
        if self.kernel_call is None:
            assert self._sums is not None, "the last layer was not reached"
            return list(map(math.isfinite, self._sums.tolist()))
        found = [True] * self.plan.num_tokens
        for row, is_finite in self.kernel_call.finite():
            found[row] = is_finite
        return found

    @property
    def kernel_call(self) -> SlotAttention | None:
        """The call of the kernel that attends all tokens of the pass; None if it takes others."""
        calls = self.plan.kernel_calls
        return calls[0] if len(calls) == 1 and calls[0].num_queries == self.plan.num_tokens else None

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend every token of the pass over its own slot. --> [rows, heads, value width], contiguous

        The layer after the attention can choose another kernel for other strides, so the strides never vary.
        """
        plan, layer = self.plan, self._layer
        if plan.is_all_runs:
            return self._attend_runs(query.transpose(0, 2), layer, params).contiguous()
        out = torch.empty(plan.num_tokens, query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device)
        for attention in plan.kernel_calls:
            attention.attend(
                query,
                self._states,
                layer,
                out,
                scaling=params.scaling,
                window=params.window,
                softcap=params.softcap,
                sinks=params.sinks,
            )
        queries = query.transpose(0, 2)  # --> [rows, heads, 1, width]
        if plan.runs:
            out[plan.run_rows] = self._attend_runs(queries[plan.run_rows], layer, params)
        for part in plan.ranges:
            out[part.rows] = self._attend_range(part, queries, layer, params)
        for segment in plan.blocks:
            for piece in segment.pieces(_most_queries(segment, query.shape[1], params)):
                out[piece.rows] = self._attend_block(piece, query, layer, params)
        return out

    def _attend_runs(self, queries: torch.Tensor, layer: int, params: AttentionParams) -> torch.Tensor:
        """Attend single queries, [queries, heads, 1, width]. --> [queries, heads, value width]"""
        runs = self.plan.runs
        parts = queries.split_with_sizes([len(run.lengths) for run in runs])
        views = [self.plan.run_view(run, params.window) for run in runs]
        found = [_attend(view, part, layer, params) for view, part in zip(views, parts, strict=True)]
        return (found[0] if len(found) == 1 else torch.cat(found))[:, :, 0]

    def _attend_block(self, segment: Segment, query: torch.Tensor, layer: int, params: AttentionParams) -> torch.Tensor:
        kv_view = self.plan.segment_view(segment, params.window, masked=params.needs_manual)
        return _attend(kv_view, query[:, :, segment.rows], layer, params)[0].transpose(0, 1)

    def _attend_range(
        self, part: MaskedRange, queries: torch.Tensor, layer: int, params: AttentionParams
    ) -> torch.Tensor:
        slots = slice(part.first, part.stop)
        keys = part.pool.keys[layer][slots, :, : part.longest]
        values = part.pool.values[layer][slots, :, : part.longest]
        spread = keys.new_zeros(part.stop - part.first, *queries.shape[1:])  # --> [slots, heads, 1, width]
        spread[part.slots] = queries[part.rows].to(keys.dtype)
        mask = self.plan.range_mask(part, params.window).beside(keys)
        out = manual_attention(spread, keys, values, params, mask)
        return out[part.slots, :, 0].to(queries.dtype)

    def __len__(self) -> int:
        return self.num_layers


def _copied(copy: SlotCopy, states: torch.Tensor) -> torch.Tensor:
    """Return the rows of a copy, [slots, heads, positions, width], from [1, heads, tokens, width]."""
    part = states if copy.rows is None else states[:, :, copy.rows]
    return part.transpose(0, 2) if copy.has_many_slots else part


def _store(write: SlotScatter, cached: torch.Tensor, states: torch.Tensor) -> None:
    tokens = states[0].transpose(0, 1)[write.rows]  # --> [tokens, heads, width]
    cached.transpose(1, 2).index_put_((write.slots, write.positions), tokens.to(cached.dtype))


def _attend(kv_view: KVView, queries: torch.Tensor, layer: int, params: AttentionParams) -> torch.Tensor:
    """Attend [slots, heads, queries, width] over a view, in the dtype of its keys."""
    keys, values = kv_view.states.keys[layer], kv_view.states.values[layer]
    mask = None if kv_view.mask is None else kv_view.mask.beside(keys)
    out = attend(queries.to(keys.dtype), keys, values, params, mask=mask, is_causal=kv_view.is_causal)
    return out.to(queries.dtype)


def _most_queries(segment: Segment, num_heads: int, params: AttentionParams) -> int:
    """Return the most queries of a segment for one call."""
    if params.needs_manual:
        return max(1, min(MAX_BLOCK_QUERIES, MAX_MANUAL_SCORES // (num_heads * segment.stop)))
    if segment.sees_whole_prefix(params.window):
        return segment.width
    return (
        MAX_BLOCK_QUERIES if params.window is None else min(MAX_BLOCK_QUERIES, max(MIN_WINDOW_QUERIES, params.window))
    )


class FirstTokensCache(UnmaskedCache):
    """Keeps K/V, layout and window of each layer while the model reads the first tokens of one sequence.

    The recorded dtype is that of the cache, see `cache_dtype`.

    Attributes:
        layouts, windows, states: by layer; keys and values are [1, heads, tokens, width].
        num_calls: how often the model called its attention.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layouts: dict[int, LayerLayout] = {}
        self.windows: dict[int, int | None] = {}
        self.states: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self.num_calls = 0
        self._layer = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keep the keys and values of one layer."""
        self._layer = layer_idx
        heads, widths = key_states.shape[1], (key_states.shape[-1], value_states.shape[-1])
        self.layouts[layer_idx] = LayerLayout(heads, *widths, key_states.dtype, key_states.device)
        self.states[layer_idx] = key_states, value_states
        return key_states, value_states

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend in one layer. --> [tokens, heads, value width]"""
        layout = self.layouts[self._layer]
        heads = Heads(layout.num_heads, query.shape[1] // layout.num_heads, layout.key_width)
        # The kernel reads half precision as fast as memory gives it.
        if layout.device.type != "cpu" or not attends(query.dtype, layout.dtype):
            dtype = cache_dtype(layout.dtype, layout.device.type, heads, written_out=params.needs_manual)
            self.layouts[self._layer] = layout._replace(dtype=dtype)
        self.windows[self._layer] = params.window
        self.num_calls += 1
        places = torch.arange(query.shape[2], device=key.device)
        mask = Mask(seen(places, places[:, None] + 1, params.window)) if len(places) > 1 else None
        # Half precision would round the scores of attention that is written out.
        dtype = torch.float32 if params.needs_manual else self.layouts[self._layer].dtype
        keys, values = key.to(dtype), value.to(dtype)
        out = attend(query.to(dtype), keys, values, params, mask=None if mask is None else mask.beside(keys))
        return out[0].transpose(0, 1).to(query.dtype).contiguous()

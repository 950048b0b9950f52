"""The `Cache` that transformers sees during one pass: it applies the attention plan in every layer.

Knows the plan and the pools; neither the model, nor which sequence a slot belongs to.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache

from unspool.runtimes.kv.attention import (
    AttentionParams,
    Heads,
    PartialAttention,
    attend,
    attend_part,
    cache_dtype,
    manual_attention,
    merge_partial,
    parts_can_be_joined,
)
from unspool.runtimes.kv.attention_plan import (
    AttentionPlan,
    DecodeRun,
    KVView,
    MaskedRange,
    PrefixGroup,
    Segment,
    SlotCopy,
    SlotScatter,
    sees_whole_prefix,
)
from unspool.runtimes.kv.pool import LayerLayout, SlotPool

# Queries attended at once: more would compute many scores that a mask then takes away.
_MOST_QUERIES = 512
_LEAST_WINDOW = 64
# Scores of attention that is written out, which stands in memory.
_MOST_SCORES = 1 << 22


class UnmaskedCache(Cache):
    """What a model takes for a cache of no length, so that it builds no mask: positions are always given."""

    supported_params: ClassVar[frozenset[str]] = frozenset({"window", "softcap", "sinks"})

    def __init__(self) -> None:
        super().__init__(layers=[])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0, whatever is cached."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys and offset of a mask, which is never built."""
        return query_length, 0


class SlotCache(UnmaskedCache):
    """What transformers takes for its cache during one pass: writes keys and values into slots, and attends.

    After the pass, `finite` says which tokens' values were finite: bool [tokens].
    """

    def __init__(self, plan: AttentionPlan, num_layers: int) -> None:
        super().__init__()
        self.plan, self.num_layers = plan, num_layers
        self.finite: torch.Tensor | None = None
        self._layer = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [1, heads, tokens, width], into the slots."""
        self._layer = layer_idx
        for copy in self.plan.copies:
            copy.into.keys[layer_idx].copy_(_copied(copy, key_states))
            copy.into.values[layer_idx].copy_(_copied(copy, value_states))
        for write in self.plan.writes:
            _store(write, write.pool.keys[layer_idx], key_states)
            _store(write, write.pool.values[layer_idx], value_states)
        if layer_idx == self.num_layers - 1:
            # What is not finite in any earlier layer has made this layer's input, hence its value, not finite.
            self.finite = value_states[0].sum((0, 2), dtype=torch.float32).isfinite()
        return key_states, value_states

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend every token of the pass over its own slot. --> [rows, heads, value width]"""
        plan, layer = self.plan, self._layer
        queries = query.transpose(0, 2)  # --> [rows, heads, 1, width]
        if plan.is_all_runs:
            padding = plan.num_rows - plan.num_tokens
            if not padding:
                return self._attend_runs(queries, layer, params)
            if plan.num_tokens == 1:  # then padding is that very token again
                return self._attend_runs(queries[:1], layer, params).expand(plan.num_rows, -1, -1)
            return F.pad(self._attend_runs(queries[: plan.num_tokens], layer, params), (0, 0, 0, 0, 0, padding))
        out = torch.empty(plan.num_rows, query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device)
        out[plan.num_tokens :] = 0
        if plan.groups:
            out[plan.run_rows] = self._attend_runs(queries[plan.run_rows], layer, params)
        for part in plan.ranges:
            out[part.rows] = self._attend_range(part, queries, layer, params)
        for span in plan.blocks:
            for piece in span.pieces(_most_queries(span, query.shape[1], params)):
                out[piece.rows] = self._attend_block(piece, query, layer, params)
        return out

    def _attend_runs(self, queries: torch.Tensor, layer: int, params: AttentionParams) -> torch.Tensor:
        """Attend single queries, [queries, heads, 1, width]. --> [queries, heads, value width]"""
        groups = self.plan.groups
        if len(groups) == 1:
            return self._attend_group(groups[0], queries, layer, params)[:, :, 0]
        parts = zip(groups, queries.split_with_sizes([group.num_queries for group in groups]), strict=True)
        return torch.cat([self._attend_group(group, part, layer, params) for group, part in parts])[:, :, 0]

    def _attend_group(
        self, group: PrefixGroup, queries: torch.Tensor, layer: int, params: AttentionParams
    ) -> torch.Tensor:
        if group.shared_prefix is None or not _shares(group, group.shared_prefix.pool, layer, params):
            runs = zip(group.runs, _split(queries, group.runs), strict=True)
            found = [_attend(self.plan.run_view(run, params.window), part, layer, params) for run, part in runs]
            return found[0] if len(found) == 1 else torch.cat(found)
        shared_prefix = _attend_part(self.plan.prefix_view(group), queries.transpose(0, 2), layer, params)
        rest = [
            _attend_part(self.plan.run_view(run, None, group.stem_length), part, layer, params)
            for run, part in zip(group.runs, _split(queries, group.runs), strict=True)
        ]
        own = rest[0] if len(rest) == 1 else PartialAttention(*map(torch.cat, zip(*rest, strict=True)))
        return merge_partial(
            PartialAttention(shared_prefix.out.transpose(0, 2), shared_prefix.weight.transpose(0, 2)), own
        ).to(queries.dtype)

    def _attend_block(self, span: Segment, query: torch.Tensor, layer: int, params: AttentionParams) -> torch.Tensor:
        kv_view = self.plan.segment_view(span, params.window, masked=params.needs_manual)
        return _attend(kv_view, query[:, :, span.rows], layer, params)[0].transpose(0, 1)

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
    """Return what goes into the slots, [slots, heads, positions, width], of [1, heads, tokens, width]."""
    part = states if copy.rows is None else states[:, :, copy.rows]
    return part.transpose(0, 2) if copy.has_many_slots else part


def _store(write: SlotScatter, cached: torch.Tensor, states: torch.Tensor) -> None:
    tokens = states[0].transpose(0, 1)[write.rows]  # --> [tokens, heads, width]
    cached.transpose(1, 2).index_put_((write.slots, write.positions), tokens.to(cached.dtype))


def _attend(kv_view: KVView, queries: torch.Tensor, layer: int, params: AttentionParams) -> torch.Tensor:
    """Attend [slots, heads, queries, width] over what they reach, in the type that this is kept in."""
    keys, values = kv_view.states.keys[layer], kv_view.states.values[layer]
    mask = None if kv_view.mask is None else kv_view.mask.beside(keys)
    out = attend(queries.to(keys.dtype), keys, values, params, mask=mask, is_causal=kv_view.is_causal)
    return out.to(queries.dtype)


def _shares(group: PrefixGroup, pool: SlotPool, layer: int, params: AttentionParams) -> bool:
    """Return whether a layer attends to a group's stem once for all its queries."""
    sees_all = params.window is None or params.window >= group.longest
    keys, values = pool.keys[layer], pool.values[layer]
    # What tells the weight of a part is a function of PyTorch's for the CPU, which takes one width.
    fits = keys.device.type == "cpu" and keys.shape[-1] == values.shape[-1]
    return sees_all and fits and not params.needs_manual and parts_can_be_joined()


def _attend_part(kv_view: KVView, queries: torch.Tensor, layer: int, params: AttentionParams) -> PartialAttention:
    """Attend [slots, heads, queries, width] over some of what they see."""
    keys, values = kv_view.states.keys[layer], kv_view.states.values[layer]
    mask = None if kv_view.mask is None else kv_view.mask.beside(keys)
    return attend_part(queries.to(keys.dtype), keys, values, params, mask)


def _split(queries: torch.Tensor, runs: Sequence[DecodeRun]) -> Sequence[torch.Tensor]:
    return queries.split_with_sizes([len(run.lengths) for run in runs]) if len(runs) > 1 else (queries,)


def _most_queries(span: Segment, num_heads: int, params: AttentionParams) -> int:
    """Return how many queries of a span are to be attended at once."""
    if params.needs_manual:
        return max(1, min(_MOST_QUERIES, _MOST_SCORES // (num_heads * span.stop)))
    if sees_whole_prefix(span, params.window):
        return span.width
    return _MOST_QUERIES if params.window is None else min(_MOST_QUERIES, max(_LEAST_WINDOW, params.window))


class ShapeProbeCache(UnmaskedCache):
    """Notes what each layer would cache, while a model runs one token: a layer's attention is then its own value.

    The type is the one to keep them in, see `cache_dtype`.
    """

    def __init__(self) -> None:
        super().__init__()
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

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Return each token's own value. --> [tokens, heads, value width]"""
        layout = self.layouts[self._layer]
        heads = Heads(layout.num_heads, query.shape[1] // layout.num_heads, layout.key_width)
        dtype = cache_dtype(layout.dtype, layout.device.type, heads, written_out=params.needs_manual)
        self.layouts[self._layer] = layout._replace(dtype=dtype)
        self.windows[self._layer] = params.window
        self.num_calls += 1
        return value[0].repeat_interleave(query.shape[1] // value.shape[1], 0).transpose(0, 1)

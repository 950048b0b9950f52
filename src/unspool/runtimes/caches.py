"""What transformers takes for its cache during one pass: carries a plan out in every layer.

Knows the plan and the pools; neither the model, nor which sequence a slot belongs to.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from unspool.runtimes.attention import Terms, attend, attend_plainly
from unspool.runtimes.passes import Plan, Range, Run, Span, Write, seen
from unspool.runtimes.pools import LayerLayout


class SlotCache(Cache):
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
            span.pool.keys[layer_idx][span.slot, :, span.start : span.stop] = key_states[0, :, span.rows]
            span.pool.values[layer_idx][span.slot, :, span.start : span.stop] = value_states[0, :, span.rows]
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
        queries = query.transpose(0, 2)  # --> [rows, heads, 1, width]
        if plan.is_one_run:
            return self._attend_run(plan.runs[0], queries, layer, terms)
        out = torch.empty(plan.num_rows, query.shape[1], value.shape[-1], dtype=query.dtype, device=query.device)
        out[plan.num_tokens :] = 0
        for run in plan.runs:
            out[run.rows] = self._attend_run(run, queries, layer, terms)
        for part in plan.ranges:
            out[part.rows] = _attend_range(part, queries, layer, terms)
        for span in plan.blocks:
            out[span.rows] = self._attend_block(span, query, layer, terms)
        return out

    def _attend_run(self, run: Run, queries: torch.Tensor, layer: int, terms: Terms) -> torch.Tensor:
        first, stop, allowed = self.plan.run_keys(run, terms.window)
        slots = slice(run.first, run.first + len(run.lengths))
        keys, values = run.pool.keys[layer][slots, :, first:stop], run.pool.values[layer][slots, :, first:stop]
        out = attend(queries[run.rows].to(keys.dtype), keys, values, terms, allowed=_on(keys, allowed))
        return out[:, :, 0].to(queries.dtype)

    def _attend_block(self, span: Span, query: torch.Tensor, layer: int, terms: Terms) -> torch.Tensor:
        stop = span.stop
        is_causal = span.start == 0 and (terms.window is None or terms.window >= stop)
        first, allowed = 0, None
        if not is_causal:
            first, stop, allowed = self.plan.span_keys(span, terms.window)
        slot = slice(span.slot, span.slot + 1)
        keys, values = span.pool.keys[layer][slot, :, first:stop], span.pool.values[layer][slot, :, first:stop]
        queries = query[:, :, span.rows].to(keys.dtype)
        out = attend(queries, keys, values, terms, allowed=_on(keys, allowed), is_causal=is_causal)
        return out[0].transpose(0, 1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0: positions are always given, and no mask is built from a length."""
        return 0

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Keys and offset of a mask, which is never built."""
        return query_length, 0

    def __len__(self) -> int:
        return self.num_layers


def _store(write: Write, cached: torch.Tensor, states: torch.Tensor) -> None:
    tokens = states[0].transpose(0, 1)  # --> [tokens, heads, width]
    rows = tokens if write.rows is None else tokens[write.rows]
    cached[write.slots, :, write.positions] = rows.to(cached.dtype)


def _on(keys: torch.Tensor, allowed: torch.Tensor | None) -> torch.Tensor | None:
    return None if allowed is None else allowed.to(keys.device)


def _attend_range(part: Range, queries: torch.Tensor, layer: int, terms: Terms) -> torch.Tensor:
    slots = slice(part.first, part.stop)
    keys, values = part.pool.keys[layer][slots, :, : part.longest], part.pool.values[layer][slots, :, : part.longest]
    spread = keys.new_zeros(part.stop - part.first, *queries.shape[1:])  # --> [slots, heads, 1, width]
    spread[part.slots] = queries[part.rows].to(keys.dtype)
    lengths = part.lengths.to(keys.device)[:, None, None, None]
    allowed = seen(torch.arange(part.longest, device=keys.device), lengths, terms.window)
    out = attend_plainly(spread, keys, values, terms, allowed)
    return out[part.slots, :, 0].to(queries.dtype)


class LayoutCache(Cache):
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

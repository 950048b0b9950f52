"""Attention of a decoder with cross-attention: over KV cache slots, and over the keys and values of sources.

The targets here serve the attention function that `kv/attention.py` registers with transformers.
"""

from __future__ import annotations

import math
from typing import ClassVar, Final

import torch
import torch.nn.functional as F

from unspool.kernels.library import INPUT_TYPES
from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.seq2seq.encoder_cache import EncodedSource
from unspool.runtimes.seq2seq.equal_length_batch import SlotRun
from unspool.runtimes.seq2seq.self_cache import SelfCache
from unspool.tuning import MAX_KERNEL_QUERIES

SUPPORTED: Final = frozenset({"bias"})


class EqualLengthAttention:
    """Self-attention over the slots of a pass, and cross-attention over its sources.

    Each decoder layer does self-attention right after it has written to the cache, and cross-attention after that.

    Args:
        cache: of the pass.
        uses_kernel: True if our kernel attends few queries. It knows no position bias.

    Attributes:
        num_calls: how often the model called it.
    """

    supported_params: ClassVar[frozenset[str]] = SUPPORTED

    def __init__(self, cache: SelfCache, *, uses_kernel: bool = False) -> None:
        self.cache, self._batch = cache, cache.batch
        self._uses_kernel = uses_kernel and self._batch.width <= MAX_KERNEL_QUERIES
        self.num_calls = 0

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend in one layer; see `Attends`. `key` and `value` are stand-ins, and only their shape counts."""
        return self.attend_queries(query, value.shape[-1], params)

    def write(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> None:
        """Write one layer's keys and values; see `SelfCache.write`."""
        self.cache.write(key, value, layer)

    def attend_queries(self, query: torch.Tensor, value_width: int, params: AttentionParams) -> torch.Tensor:
        """Attend in one layer; see `Attends`."""
        self.num_calls += 1
        if self.cache.states is None:
            return _by_query(self._cross_attention(query, value_width, params))
        if self._uses_kernel and params.bias is None and query.dtype in INPUT_TYPES:
            return self._by_kernel(query, value_width, params, self.cache.states)
        self.cache.store()
        return _by_query(self._self_attention(query, value_width, params))

    def _by_kernel(
        self, query: torch.Tensor, value_width: int, params: AttentionParams, states: tuple[torch.Tensor, torch.Tensor]
    ) -> torch.Tensor:
        """Write keys and values and do self-attention, in one call per pool; see `Attends`."""
        self.cache.states, layer = None, self.cache.layer
        query, key, value = (_in_one_row(each) for each in (query, *states))
        out = query.new_empty(query.shape[2], query.shape[1], value_width)
        for attention in self._batch.kernel_calls:
            attention.attend(query, (key, value), layer, out, scaling=params.scaling)
        return out

    def _self_attention(self, query: torch.Tensor, value_width: int, params: AttentionParams) -> torch.Tensor:
        """Return [rows, heads, width, value width], as for `_cross_attention`."""
        runs = self._batch.runs
        if len(runs) == 1:
            return self._over_slots(runs[0], query, params)
        out = query.new_empty(*query.shape[:3], value_width)
        for run in runs:
            out[run.rows] = self._over_slots(run, query[run.rows], params)
        return out

    def _cross_attention(self, query: torch.Tensor, value_width: int, params: AttentionParams) -> torch.Tensor:
        # Ignore `params.bias`: T5 passes zeros here, with the shape of the stand-in for the source.
        groups = self._batch.groups
        if len(groups) == 1:
            return self._over_source(groups[0].encoded, query, params.scaling)
        out = query.new_empty(*query.shape[:3], value_width)
        for group in groups:
            out[group.rows] = self._over_source(group.encoded, query[group.rows], params.scaling)
        return out

    def _over_slots(self, run: SlotRun, query: torch.Tensor, params: AttentionParams) -> torch.Tensor:
        keys, values = run.whole.keys[self.cache.layer], run.whole.values[self.cache.layer]
        queries = query.to(keys.dtype)
        if run.offsets is not None:
            queries = keys.new_zeros(keys.shape[0], *query.shape[1:])
            queries[run.offsets] = query.to(keys.dtype)
        mask = _bias(params, keys.dtype)
        if self._batch.width > 1:
            allowed = self._batch.causal(keys.device)
            mask = allowed if mask is None else mask.masked_fill(~allowed, -math.inf)
        out = _scaled_dot_product(queries, keys, values, mask, params.scaling)
        return (out if run.offsets is None else out[run.offsets]).to(query.dtype)

    def _over_source(self, encoded: EncodedSource, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
        keys, values = encoded.keys[self.cache.layer], encoded.values[self.cache.layer]
        rows, heads, width, size = query.shape
        if rows == 1:
            return _scaled_dot_product(query.to(keys.dtype), keys, values, None, scaling).to(query.dtype)
        # Fold the rows into queries of one row, so that one call reads the source once for all of them.
        queries = query.to(keys.dtype).transpose(0, 1).reshape(1, heads, rows * width, size)
        out = _scaled_dot_product(queries, keys, values, None, scaling)
        return out.view(heads, rows, width, -1).transpose(0, 1).to(query.dtype)


class FirstTokenAttention:
    """Attention of a decoder's first token over the keys and values that the model passes."""

    supported_params: ClassVar[frozenset[str]] = SUPPORTED

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend in one layer; see `Attends`."""
        assert query.shape[2] == 1, "only a first token sees all keys without a causal mask"
        return _by_query(_scaled_dot_product(query, key, value, _bias(params, key.dtype), params.scaling))


def _bias(params: AttentionParams, dtype: torch.dtype) -> torch.Tensor | None:
    return None if params.bias is None else params.bias.to(dtype)


def _scaled_dot_product(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scaling: float | None
) -> torch.Tensor:
    is_grouped = query.shape[1] != key.shape[1]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scaling, enable_gqa=is_grouped)


def _in_one_row(states: torch.Tensor) -> torch.Tensor:
    """Put the tokens of all rows side by side: [rows, heads, width, size] --> [1, heads, rows * width, size]"""
    return states.transpose(0, 2) if states.shape[2] == 1 else states.transpose(0, 1).flatten(1, 2)[None]


def _by_query(out: torch.Tensor) -> torch.Tensor:
    """Turn [rows, heads, width, value width] into the order that `Attends` returns."""
    return out.transpose(1, 2).flatten(0, 1)  # --> [rows * width, heads, value width]

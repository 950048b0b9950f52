"""Decode buffers: the inputs of a decode step at fixed addresses, padded to a bucket of rows.

Work on these buffers can be captured once in a CUDA graph and repeated for later steps. Knows neither models nor
captures.
"""

from __future__ import annotations

from typing import Any

import torch

from unspool.runtimes.kv.attention import AttentionParams, manual_attention
from unspool.runtimes.kv.attention_plan import Mask, seen
from unspool.runtimes.kv.cache import UnmaskedCache
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.pool import SlotPool
from unspool.tuning import GRAPH_MAX_ROWS


def bucket_of(batch: Batch) -> int | None:
    """Return the rows of a decode step's bucket, a power of two; None for any other pass.

    A decode step has one token per sequence, and all of its sequences lie in one pool.
    """
    if batch.hidden is not None or batch.inner is not None or batch.invariant:
        return None
    if any(batch.positions[span.row] != span.start for span in batch.spans):
        return None  # images take fewer positions than tokens
    if any(span.width > 1 or span.pool is not batch.spans[0].pool for span in batch.spans):
        return None
    rows = 1 << (len(batch.tokens) - 1).bit_length()
    return rows if len(batch.asked) <= rows <= GRAPH_MAX_ROWS else None


class DecodeBuffers:
    """Inputs of a decode step. Padding repeats the first row: it writes the same keys to the same position.

    Args:
        rows: size of the bucket.
        device: device of the model and its KV cache.

    Attributes:
        ids, positions, slots: [rows], int64, of each token.
        keep: [rows], int64, rows of the logits to return, in order, then zeros.
        filled: the present contents, as lists in this order.
    """

    def __init__(self, rows: int, device: torch.device) -> None:
        self.rows = rows
        # Buffers made in the caller's inference mode could not be written to outside of it.
        with torch.inference_mode(False):
            self._buffer = torch.zeros(4, rows, dtype=torch.int64, device=device)
        self.ids, self.positions, self.slots, self.keep = self._buffer.unbind(0)
        self.filled: list[list[int]] = []

    def fill(self, batch: Batch) -> None:
        """Take over a decode step of this bucket: one copy to the device."""
        slots = [span.slot for span in sorted(batch.spans, key=lambda span: span.row)]
        columns = [self._padded(column) for column in (batch.tokens, batch.positions, slots)]
        self.filled = [*columns, batch.asked + [0] * (self.rows - len(batch.asked))]
        self._buffer.copy_(torch.tensor(self.filled, device="cpu"))

    def _padded(self, column: list[int]) -> list[int]:
        return column + column[:1] * (self.rows - len(column))


class BufferedCache(UnmaskedCache):
    """Cache of a pass over decode buffers. Each row attends to the whole slot, masked to its sequence.

    Attributes:
        finite: after the pass, bool [rows]: whether a row's values are finite.
    """

    def __init__(self, pool: SlotPool, buffers: DecodeBuffers, num_layers: int) -> None:
        super().__init__()
        self._pool, self._buffers, self._num_layers, self._layer = pool, buffers, num_layers, 0
        self._masks: dict[int | None, Mask] = {}
        self.finite: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write one layer's keys and values, [1, heads, rows, width], into the slots."""
        self._layer = layer_idx
        indices = (self._buffers.slots, self._buffers.positions)
        for cached, states in ((self._pool.keys, key_states), (self._pool.values, value_states)):
            rows = states[0].transpose(0, 1)  # --> [rows, heads, width]
            cached[layer_idx].transpose(1, 2).index_put_(indices, rows.to(cached[layer_idx].dtype))
        if layer_idx == self._num_layers - 1:
            # A value that is not finite in an earlier layer makes this layer's values not finite.
            self.finite = value_states[0].sum((0, 2), dtype=torch.float32).isfinite()
        return key_states, value_states

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Attend every row to its own slot. --> [rows, heads, value width]"""
        queries = query.transpose(0, 2)  # --> [rows, heads, 1, width]
        states = (self._pool.keys, self._pool.values)
        keys, values = (each[self._layer].index_select(0, self._buffers.slots) for each in states)
        mask = self._mask(params.window).beside(keys)
        return manual_attention(queries.to(keys.dtype), keys, values, params, mask)[:, :, 0].to(query.dtype)

    def _mask(self, window: int | None) -> Mask:
        """Return the keys that each row sees. --> [rows, 1, 1, capacity]"""
        if window not in self._masks:
            keys = torch.arange(self._pool.capacity, device=self._buffers.positions.device)
            self._masks[window] = Mask(seen(keys, self._buffers.positions[:, None, None, None] + 1, window))
        return self._masks[window]

    def __len__(self) -> int:
        return self._num_layers

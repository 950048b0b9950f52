"""The decoder's self-attention cache during one pass: writes keys and values into KV cache slots."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import Cache

from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch, SlotRun


class SelfCache(Cache):
    """The `Cache` that transformers sees as the decoder's own during one pass.

    Args:
        batch: the rows of the pass.
        num_layers: of the decoder.
        returns_all: True if the model computes attention itself: `update` then returns the keys and values of all
            positions. False returns stand-ins of that shape, since `EqualLengthAttention` reads the slots.

    Attributes:
        layer: the newest layer.
        states: its keys and values until they are in the slots; else None.
        finite: after the pass, whether each row's newest values were finite, bool [rows].
    """

    def __init__(self, batch: EqualLengthBatch, num_layers: int, *, returns_all: bool) -> None:
        super().__init__(layers=[])
        self.batch, self.num_layers, self._returns_all = batch, num_layers, returns_all
        self.finite: torch.Tensor | None = None
        self.layer = 0
        self.states: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take one layer's keys and values, and return those of all positions, or stand-ins."""
        self.write(key_states, value_states, layer_idx)
        if not self._returns_all:
            keys = self.stand_in(key_states)
            return keys, keys if key_states.shape == value_states.shape else self.stand_in(value_states)
        self.store()
        written = [_read(run, run.whole.keys[layer_idx]) for run in self.batch.runs]
        values = [_read(run, run.whole.values[layer_idx]) for run in self.batch.runs]
        return _concatenated(written), _concatenated(values)

    def write(self, key_states: torch.Tensor, value_states: torch.Tensor, layer: int) -> None:
        """Take one layer's keys and values, [rows, heads, width, head width]. `store` or the kernel writes them."""
        self.layer, self.states = layer, (key_states, value_states)
        if layer == self.num_layers - 1:
            # A nonfinite value in an earlier layer makes this layer's input, and so its value, nonfinite.
            self.finite = value_states.float().sum((1, 2, 3)).isfinite()

    def store(self) -> None:
        """Write the newest keys and values into the slots."""
        assert self.states is not None, "each layer is written once"
        (keys, values), self.states, layer = self.states, None, self.layer
        for run in self.batch.runs:
            _write(run, run.new.keys[layer], keys[run.rows])
            _write(run, run.new.values[layer], values[run.rows])

    def stand_in(self, states: torch.Tensor) -> torch.Tensor:
        """Return a tensor with the shape of all positions. --> [rows, heads, stop, head width]"""
        # A model with a position bias reads the number of positions from this shape.
        first = states if states.shape[2] == 1 else states[:, :, :1]
        return first.expand(-1, -1, self.batch.stop, -1)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the positions cached before this pass."""
        return self.batch.start

    def get_query_offset(self, layer_idx: int = 0) -> int:
        """Return the position of the first new token."""
        return self.batch.start

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Return the number of keys and the offset of a mask over all positions."""
        return self.batch.start + query_length, 0

    def __len__(self) -> int:
        return self.num_layers


def _write(run: SlotRun, slots: torch.Tensor, rows: torch.Tensor) -> None:
    if run.offsets is None:
        slots.copy_(rows)
    else:
        slots[run.offsets.to(slots.device)] = rows.to(slots.dtype)


def _read(run: SlotRun, slots: torch.Tensor) -> torch.Tensor:
    return slots if run.offsets is None else slots[run.offsets.to(slots.device)]


def _concatenated(parts: list[torch.Tensor]) -> torch.Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)

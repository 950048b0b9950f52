"""Keys and values in memory: pools of equal slots, a tensor a layer. Knows tensors, no sequences and no tokens."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch

SMALLEST_CLASS = 64
_FIRST_POOL_TOKENS = 512
_LARGEST_POOL_TOKENS = 1 << 14


class LayerLayout(NamedTuple):
    """What one attention layer keeps of a token: a key and a value for each head."""

    num_heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in this layer."""
        return self.num_heads * (self.key_width + self.value_width) * self.dtype.itemsize


Layout: TypeAlias = tuple[LayerLayout, ...]


def size_class(num_tokens: int) -> int:
    """Return the smallest of 64, 128, 256, ... that holds so many tokens."""
    return max(SMALLEST_CLASS, 1 << (num_tokens - 1).bit_length() if num_tokens > 1 else 1)


class SlotPool:
    """`num_slots` slots of `capacity` tokens. keys, values: a layer each, [slots, heads, capacity, width], zeroed."""

    def __init__(self, layout: Layout, capacity: int, num_slots: int) -> None:
        self.capacity, self.num_slots = capacity, num_slots
        self.keys = [self._zeros(layer, layer.key_width) for layer in layout]
        self.values = [self._zeros(layer, layer.value_width) for layer in layout]

    def _zeros(self, layer: LayerLayout, width: int) -> torch.Tensor:
        shape = (self.num_slots, layer.num_heads, self.capacity, width)
        # Made in the caller's inference mode, it could not be written to outside of it.
        with torch.inference_mode(False):
            return torch.zeros(shape, dtype=layer.dtype, device=layer.device)

    @property
    def num_tokens(self) -> int:
        """Tokens this pool has room for, used or not."""
        return self.capacity * self.num_slots

    def zero(self, index: int, start: int, stop: int) -> None:
        """Clear positions [start, stop) of one slot."""
        for tensor in (*self.keys, *self.values):
            tensor[index, :, start:stop] = 0

    def copy(self, index: int, source: SlotPool, source_index: int, start: int, stop: int) -> None:
        """Copy positions [start, stop) from a slot of this or another pool of the same layout."""
        if start >= stop:
            return
        for mine, theirs in zip((*self.keys, *self.values), (*source.keys, *source.values), strict=True):
            mine[index, :, start:stop] = theirs[source_index, :, start:stop]


def next_pool_size(capacity: int, num_slots: int) -> int:
    """Return how many slots the next pool of a size class has: as many as there are, within reason."""
    smallest, largest = _FIRST_POOL_TOKENS // capacity, _LARGEST_POOL_TOKENS // capacity
    return max(1, min(max(num_slots, smallest), largest))

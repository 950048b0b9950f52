"""The tensors of the KV cache: pools of equal slots. Does not know sequences or tokens.

The cache is not paged: a slot is contiguous memory for one sequence, so it needs no block table (PagedAttention).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import NamedTuple, TypeAlias

import torch

from unspool.kernels.attention import SlotTensors
from unspool.runtimes.kv.lazy_memory import CAN_GIVE_BACK, LazyZeros
from unspool.tuning import FIRST_POOL_TOKENS, LARGEST_POOL_TOKENS, SMALLEST_SLOT


class LayerLayout(NamedTuple):
    """The K/V of one token in one attention layer: a key and a value per head."""

    num_heads: int
    key_width: int
    value_width: int
    dtype: torch.dtype
    device: torch.device

    @property
    def bytes_per_token(self) -> int:
        """K/V bytes per token in this layer."""
        return self.num_heads * (self.key_width + self.value_width) * self.dtype.itemsize


Layout: TypeAlias = tuple[LayerLayout, ...]


def can_give_back(layout: Layout) -> bool:
    """Return True if slots of this layout can give their memory back to the system."""
    return CAN_GIVE_BACK and all(layer.device.type == "cpu" for layer in layout)


def size_class(num_tokens: int) -> int:
    """Return the capacity for `num_tokens` tokens: the smallest of 64, 128, 256, ... that is large enough."""
    return max(SMALLEST_SLOT, 1 << (num_tokens - 1).bit_length() if num_tokens > 1 else 1)


class LayerStates(NamedTuple):
    """Keys and values of some slots and positions, one tensor per layer."""

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]


class _Shape(NamedTuple):
    """Shape of the keys, or the values, of one layer. Equal shapes are stacked in one tensor."""

    num_heads: int
    width: int
    dtype: torch.dtype
    device: torch.device


class SlotPool:
    """Slots of equal capacity, zeroed when they are allocated.

    All layers with one shape are stacked in one tensor, so that one op copies, clears or views a slot in all layers. On
    a CPU, positions take memory once they are written.

    Args:
        layout: K/V shapes per layer.
        capacity: tokens per slot.
        num_slots: at least 1.

    Attributes:
        keys, values: per layer [slots, heads, capacity, width].
        bytes_per_token: K/V bytes per token and layer, averaged over the layers.
    """

    def __init__(self, layout: Layout, capacity: int, num_slots: int) -> None:
        self.capacity, self.num_slots, self._num_layers = capacity, num_slots, len(layout)
        self.bytes_per_token = sum(layer.bytes_per_token for layer in layout) // len(layout)
        shapes = [_Shape(layer.num_heads, layer.key_width, layer.dtype, layer.device) for layer in layout]
        shapes += [_Shape(layer.num_heads, layer.value_width, layer.dtype, layer.device) for layer in layout]
        alike: dict[_Shape, list[int]] = {}
        for number, shape in enumerate(shapes):
            alike.setdefault(shape, []).append(number)
        stacked = [number for numbers in alike.values() for number in numbers]
        # The index in the concatenated stacks of each layer's keys, then of each layer's values.
        self._places = sorted(range(len(stacked)), key=stacked.__getitem__)
        # Tensors made in the caller's inference mode could not be written outside of it.
        self._lazy: list[LazyZeros] = []
        with torch.inference_mode(False):
            self._stacks = [self._zeros(shape, len(numbers)) for shape, numbers in alike.items()]
            self.keys, self.values = self.views(slice(None), slice(None))

    def _zeros(self, shape: _Shape, count: int) -> torch.Tensor:
        sizes = (count, self.num_slots, shape.num_heads, self.capacity, shape.width)
        if shape.device.type != "cpu":
            return torch.zeros(sizes, dtype=shape.dtype, device=shape.device)
        lazy = LazyZeros(sizes, shape.dtype)
        self._lazy.append(lazy)
        return lazy.tensor

    @property
    def num_tokens(self) -> int:
        """Tokens that the pool has room for."""
        return self.capacity * self.num_slots

    @cached_property
    def tensors(self) -> SlotTensors:
        """The keys and values for the kernel of attention."""
        return SlotTensors(self.keys, self.values)

    def views(self, slots: slice, positions: slice) -> LayerStates:
        """Return views of some slots and positions: per layer [slots, heads, positions, width]."""
        parts = self._stacks[0][:, slots, :, positions].unbind(0)
        if len(self._stacks) > 1:
            rest = (part for stack in self._stacks[1:] for part in stack[:, slots, :, positions].unbind(0))
            every = (*parts, *rest)
            parts = tuple(every[place] for place in self._places)
        return LayerStates(parts[: self._num_layers], parts[self._num_layers :])

    def zero(self, index: int, start: int, stop: int) -> None:
        """Set K/V at positions [start, stop) of one slot to 0."""
        for stack in self._stacks:
            stack[:, index, :, start:stop] = 0

    def give_back(self, index: int) -> None:
        """Give the memory of one slot back to the system, if it takes it. K/V of the slot are 0 or unchanged then."""
        for lazy in self._lazy:
            layers, slots, *rest = lazy.tensor.shape
            size = prod(rest) * lazy.tensor.itemsize
            for layer in range(layers):
                start = (layer * slots + index) * size
                lazy.give_back(start, start + size)

    def copy(self, index: int, source: SlotPool, source_index: int, start: int, stop: int) -> None:
        """Copy K/V at positions [start, stop) from a slot of this pool, or of another pool with the same layout."""
        if start >= stop:
            return
        for mine, theirs in zip(self._stacks, source._stacks, strict=True):
            mine[:, index, :, start:stop] = theirs[:, source_index, :, start:stop]


def next_pool_size(capacity: int, num_slots: int) -> int:
    """Return the number of slots that a size class grows by: it doubles, within 512 and 16,384 tokens."""
    smallest, largest = FIRST_POOL_TOKENS // capacity, LARGEST_POOL_TOKENS // capacity
    return max(1, min(max(num_slots, smallest), largest))

"""The tensors of the KV cache: pools of equal slots. Does not know sequences or tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch

SMALLEST_CLASS = 64
_FIRST_POOL_TOKENS = 512
LARGEST_POOL_TOKENS = 1 << 14


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


class LayerStates(NamedTuple):
    """Keys and values of some slots and positions, a tensor for each layer."""

    keys: Sequence[torch.Tensor]
    values: Sequence[torch.Tensor]


class _Shape(NamedTuple):
    """What keys, or values, of one layer have in common with those that they lie beside."""

    num_heads: int
    width: int
    dtype: torch.dtype
    device: torch.device


class SlotPool:
    """`num_slots` slots of `capacity` tokens. keys, values: a layer each, [slots, heads, capacity, width], zeroed.

    What has one shape lies in one tensor, whatever layer it belongs to: a slot is copied, cleared or looked at in all
    layers at once. bytes_per_token: of one token's keys and values in one layer, on average over the layers.
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
        # Where each layer's keys, then each layer's values, stand in the stacks one behind another.
        self._places = sorted(range(len(stacked)), key=stacked.__getitem__)
        # Made in the caller's inference mode, they could not be written to outside of it.
        with torch.inference_mode(False):
            self._stacks = [self._zeros(shape, len(numbers)) for shape, numbers in alike.items()]
            self.keys, self.values = self.views(slice(None), slice(None))

    def _zeros(self, shape: _Shape, count: int) -> torch.Tensor:
        sizes = (count, self.num_slots, shape.num_heads, self.capacity, shape.width)
        return torch.zeros(sizes, dtype=shape.dtype, device=shape.device)

    @property
    def num_tokens(self) -> int:
        """Tokens this pool has room for, used or not."""
        return self.capacity * self.num_slots

    def views(self, slots: slice, positions: slice) -> LayerStates:
        """Return keys and values of neighboring slots at some positions, [slots, heads, positions, width] a layer."""
        parts = self._stacks[0][:, slots, :, positions].unbind(0)
        if len(self._stacks) > 1:
            rest = (part for stack in self._stacks[1:] for part in stack[:, slots, :, positions].unbind(0))
            every = (*parts, *rest)
            parts = tuple(every[place] for place in self._places)
        return LayerStates(parts[: self._num_layers], parts[self._num_layers :])

    def zero(self, index: int, start: int, stop: int) -> None:
        """Clear positions [start, stop) of one slot."""
        for stack in self._stacks:
            stack[:, index, :, start:stop] = 0

    def copy(self, index: int, source: SlotPool, source_index: int, start: int, stop: int) -> None:
        """Copy positions [start, stop) from a slot of this or another pool of the same layout."""
        if start >= stop:
            return
        for mine, theirs in zip(self._stacks, source._stacks, strict=True):
            mine[:, index, :, start:stop] = theirs[:, source_index, :, start:stop]


def next_pool_size(capacity: int, num_slots: int) -> int:
    """Return how many slots the next pool of a size class has: as many as there are, within reason."""
    smallest, largest = _FIRST_POOL_TOKENS // capacity, LARGEST_POOL_TOKENS // capacity
    return max(1, min(max(num_slots, smallest), largest))

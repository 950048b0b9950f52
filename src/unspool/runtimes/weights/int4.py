"""A matrix in 4 bits a number, and products with it on a CPU.

    weight[n, k] ~ (number[n, k] - 8) * scale[n, g] + zero[n, g]       g = k // 32, number in 0 ... 15
    scale = (largest - smallest of the group) / 15, zero = smallest + 8 * scale, both in bfloat16

Inputs are rounded to bfloat16, which is little beside what 4 bits lose.
"""

from __future__ import annotations

import threading
from functools import cache
from math import prod
from typing import Final

import torch

from unspool.runtimes.weights.invariant_rows import INVARIANT

GROUP: Final = 32
"""Columns that share a scale and a zero; the width of a matrix must be a multiple of it."""

_HIGHEST, _MIDDLE = 15, 8
# Rows of a matrix that the kernel keeps together; fewer on some processors, but always a part of these.
_TILE: Final = 64
_BLOCK: Final = 1 << 19
# Numbers written out at once, which take 3.5 bytes each.
_SLAB: Final = 1 << 21
# From this many rows on, it is faster to write the matrix out, slab by slab, than to unpack it for each few rows anew.
_MANY_ROWS: Final = 128


class Int4Weight:
    """A matrix [height, width] in 4 bits a number.

    Args:
        weight: the matrix, floating-point, on the CPU; its width is a multiple of `GROUP`.

    Raises:
        RuntimeError, NotImplementedError, AttributeError: this PyTorch has no kernel for it.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._height, self._width = weight.shape
        packed, scales = [], []
        block = max(1, _BLOCK // self._width // _TILE) * _TILE
        for start in range(0, self._height, block):
            numbers, scale = _rounded(weight[start : start + block])
            packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1))
            scales.append(scale)
        self._packed, self._scales = torch.cat(packed), torch.cat(scales, 1)
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T. rows: [count, width], floating-point. --> [count, height], bfloat16"""
        rounded = rows.bfloat16()
        if len(rows) >= _MANY_ROWS and not INVARIANT.get() and (half := half_tile()):
            return self._times_many(rounded, half)
        found: torch.Tensor = self._multiply(rounded.contiguous(), self._packed, GROUP, self._scales)
        return found[:, : self._height]

    def dense(self) -> torch.Tensor:
        """Return the matrix that products are made with. --> [height, width], float32"""
        return self.times(torch.eye(self._width, dtype=torch.float32, device="cpu")).float().T

    def _times_many(self, rows: torch.Tensor, half: int) -> torch.Tensor:
        """As `times`, with the matrix written out in bfloat16. half: see `half_tile`."""
        count, tiles = len(rows), len(self._packed) // (2 * half)
        packed = self._packed.view(tiles, self._width, half)
        scales = self._scales.view(self._width // GROUP, tiles, 2, half, 2)
        found = torch.empty(count, tiles, 2, half, dtype=torch.bfloat16, device="cpu")
        step = max(1, _SLAB // (self._width * 2 * half))
        for start in range(0, tiles, step):
            slab = slice(start, start + step)
            weight = self._written_out(packed[slab], scales[:, slab])
            found[:, slab] = (rows @ weight).view(count, 2, -1, half).transpose(1, 2)
        return found.view(count, -1)[:, : self._height]

    def _written_out(self, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return tiles in bfloat16, all low halves before all high ones, in memory that the next call writes to.

        packed: [tiles, width, half]; scales: [groups, tiles, 2, half, 2]. --> [width, 2 * tiles * half]
        """
        tiles, width, half = packed.shape
        side = tiles * half
        # Turned around first: long rows are quicker to work on.
        pairs = _SCRATCH.take("pairs", torch.uint8, (width, 1, side))
        pairs.view(width, tiles, half).copy_(packed.transpose(0, 1))
        numbers = _SCRATCH.take("numbers", torch.uint8, (width, 2, side))
        torch.bitwise_and(pairs, _HIGHEST, out=numbers[:, :1])
        torch.bitwise_right_shift(pairs, 4, out=numbers[:, 1:])
        weight = _SCRATCH.take("weight", torch.bfloat16, (width, 2 * side))
        weight.copy_(numbers.view(torch.int8).sub_(_MIDDLE).view(width, 2 * side))
        grouped = weight.view(width // GROUP, GROUP, 2 * side)
        scale, zero = scales.permute(4, 0, 2, 1, 3).reshape(2, width // GROUP, 1, 2 * side)
        torch.addcmul(zero, grouped, scale, out=grouped)
        return weight


class _Scratch(threading.local):
    """Memory that slabs are written out in: each thread has its own, for all matrices.

    Fresh memory would take longer to get than to fill.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return memory of this shape, holding anything, which the next one of that name takes over."""
        size = prod(shape)
        kept = self._kept.get(name)
        if kept is None or len(kept) < size:
            # What is made in inference mode could not be written to outside of it.
            with torch.inference_mode(False):
                kept = self._kept[name] = torch.empty(size, dtype=dtype, device="cpu")
        return kept[:size].view(shape)


_SCRATCH: Final = _Scratch()


def _rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers [height, width], int32, and scales and zeros [groups, height, 2], with rows of zeros for the rest
    of the last tile."""
    height, width = weight.shape
    groups = weight.float().view(height, width // GROUP, GROUP)
    smallest, largest = groups.aminmax(dim=2)
    scale = ((largest - smallest) / _HIGHEST).bfloat16().float()
    zero = (smallest + _MIDDLE * scale).bfloat16().float()
    # A group of one value has a scale of 0, and is its zero.
    steps = (groups - zero[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None]
    numbers = steps.round_().add_(_MIDDLE).clamp_(0, _HIGHEST).to(torch.int32).view(height, width)
    missing = -height % _TILE
    pair = torch.stack((scale, zero), 2).transpose(0, 1).bfloat16()
    return torch.nn.functional.pad(numbers, (0, 0, 0, missing)), torch.nn.functional.pad(pair, (0, 0, 0, missing))


@cache
def half_tile() -> int | None:
    """Return how many rows of a matrix lie side by side in a byte's low half, the next ones in the high half.

    None where numbers lie otherwise, or products in bfloat16 are slow.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    numbers = torch.randint(
        _HIGHEST + 1, (_TILE, GROUP), dtype=torch.int32, device="cpu", generator=torch.Generator("cpu").manual_seed(0)
    )
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    for half in (32, 16, 8):
        pairs = packed.view(-1, GROUP, half)
        both = torch.stack((pairs & _HIGHEST, pairs >> 4), 1)  # --> [tiles, 2, width, half]
        if torch.equal(both.transpose(2, 3).reshape(_TILE, GROUP).int(), numbers):
            return half
    return None

"""int4: a matrix with 4 bits per number, and products with it on a CPU.

    weight[n, k] ~ (number[n, k] - 8) * scale[n, g] + zero[n, g]       g = k // 32, number in 0 ... 15
    scale = (largest - smallest of the group) / 15, zero = smallest + 8 * scale, both in bfloat16

Inputs are rounded to bfloat16, which loses little compared with 4 bits.
"""

from __future__ import annotations

import threading
from functools import cache
from math import prod
from typing import Final

import torch

from unspool.runtimes.weights.invariant_rows import INVARIANT
from unspool.tuning import INT4_MANY_ROWS, INT4_SLAB, ROUNDED_AT_ONCE

GROUP: Final = 32
"""Columns that share a scale and a zero. The width of a matrix must be a multiple of this."""

_HIGHEST: Final = 15
MIDDLE: Final = 8
"""The number that stands for the zero of a group."""

_TILE: Final = 64
"""Rows that the kernel packs together; on some CPUs fewer, but always a divisor of this."""


class Int4Weight:
    """A matrix [height, width] with 4 bits per number.

    Args:
        weight: the matrix, floating-point, on the CPU; its width is a multiple of `GROUP`.

    Raises:
        RuntimeError, NotImplementedError, AttributeError: if this PyTorch has no kernel for it.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._height, self._width = weight.shape
        packed, scales = [], []
        block = max(1, ROUNDED_AT_ONCE // self._width // _TILE) * _TILE
        for start in range(0, self._height, block):
            numbers, scale = rounded(weight[start : start + block])
            missing = -len(numbers) % _TILE
            numbers = torch.nn.functional.pad(numbers, (0, 0, 0, missing)).to(torch.int32)
            packed.append(torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1))
            scales.append(torch.nn.functional.pad(scale, (0, 0, 0, missing)))
        self._packed, self._scales = torch.cat(packed), torch.cat(scales, 1)
        self._multiply = torch.ops.aten._weight_int4pack_mm_for_cpu.default

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T. rows: [count, width], floating-point. --> [count, height], bfloat16"""
        rounded = rows.bfloat16()
        if len(rows) >= INT4_MANY_ROWS and not INVARIANT.get() and (half := half_tile()):
            return self._times_many(rounded, half)
        found: torch.Tensor = self._multiply(rounded.contiguous(), self._packed, GROUP, self._scales)
        return found[:, : self._height]

    def dense(self) -> torch.Tensor:
        """Return the rounded matrix. --> [height, width], float32"""
        return self.times(torch.eye(self._width, dtype=torch.float32, device="cpu")).float().T

    def _times_many(self, rows: torch.Tensor, half: int) -> torch.Tensor:
        """Do the same as `times` with the matrix unpacked to bfloat16. half: see `half_tile`."""
        count, tiles = len(rows), len(self._packed) // (2 * half)
        packed = self._packed.view(tiles, self._width, half)
        scales = self._scales.view(self._width // GROUP, tiles, 2, half, 2)
        found = torch.empty(count, tiles, 2, half, dtype=torch.bfloat16, device="cpu")
        step = max(1, INT4_SLAB // (self._width * 2 * half))
        for start in range(0, tiles, step):
            slab = slice(start, start + step)
            weight = self._unpacked(packed[slab], scales[:, slab])
            found[:, slab] = (rows @ weight).view(count, 2, -1, half).transpose(1, 2)
        return found.view(count, -1)[:, : self._height]

    def _unpacked(self, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
        """Return tiles in bfloat16, all low halves before all high halves, in memory that the next call overwrites.

        packed: [tiles, width, half]; scales: [groups, tiles, 2, half, 2]. --> [width, 2 * tiles * half]
        """
        tiles, width, half = packed.shape
        side = tiles * half
        # Transposed first, because ops on long rows are faster.
        pairs = _SCRATCH.take("pairs", torch.uint8, (width, 1, side))
        pairs.view(width, tiles, half).copy_(packed.transpose(0, 1))
        numbers = _SCRATCH.take("numbers", torch.uint8, (width, 2, side))
        torch.bitwise_and(pairs, _HIGHEST, out=numbers[:, :1])
        torch.bitwise_right_shift(pairs, 4, out=numbers[:, 1:])
        weight = _SCRATCH.take("weight", torch.bfloat16, (width, 2 * side))
        weight.copy_(numbers.view(torch.int8).sub_(MIDDLE).view(width, 2 * side))
        grouped = weight.view(width // GROUP, GROUP, 2 * side)
        scale, zero = scales.permute(4, 0, 2, 1, 3).reshape(2, width // GROUP, 1, 2 * side)
        torch.addcmul(zero, grouped, scale, out=grouped)
        return weight


class _Scratch(threading.local):
    """Reused memory for unpacked slabs, one set per thread for all matrices.

    Allocating new memory takes longer than filling it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, torch.Tensor] = {}

    def take(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        """Return uninitialized memory of this shape. The next call with the same name reuses it."""
        size = prod(shape)
        kept = self._kept.get(name)
        if kept is None or len(kept) < size:
            # A tensor made in inference mode could not be written outside of it.
            with torch.inference_mode(False):
                kept = self._kept[name] = torch.empty(size, dtype=dtype, device="cpu")
        return kept[:size].view(shape)


_SCRATCH: Final = _Scratch()


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers [height, width], uint8, and scales and zeros [groups, height, 2], bfloat16."""
    height, width = weight.shape
    numbers = torch.empty(height, width, dtype=torch.uint8, device="cpu")
    pairs = torch.empty(width // GROUP, height, 2, dtype=torch.bfloat16, device="cpu")
    block = max(1, ROUNDED_AT_ONCE // width)
    for start in range(0, height, block):
        groups = weight[start : start + block].float().view(-1, width // GROUP, GROUP)
        smallest, largest = groups.aminmax(dim=2)
        scale = ((largest - smallest) / _HIGHEST).bfloat16().float()
        zero = (smallest + MIDDLE * scale).bfloat16().float()
        # A group of equal values has a scale of 0; its zero is the value.
        steps = (groups - zero[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None]
        numbers[start : start + block] = steps.round_().add_(MIDDLE).clamp_(0, _HIGHEST).view(-1, width)
        pairs[:, start : start + block] = torch.stack((scale, zero), 2).transpose(0, 1)
    return numbers, pairs


@cache
def half_tile() -> int | None:
    """Return the half tile: n if bytes hold n consecutive rows in their low halves, and the next n in the high ones.

    None if numbers are packed in another way, or if products in bfloat16 are slow.
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

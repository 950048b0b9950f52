"""Quantized weights and products with them: for our kernels, and for PyTorch's products if the kernels are absent.

Both hold the same numbers, so their products are equal up to rounding. A kernel rounds each row of inputs to 16 bits
(int8), or to 8 bits in groups of 32 (int4); a product of PyTorch does not round inputs.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from unspool.kernels.library import kernels
from unspool.kernels.packed import PackedWeight, linear
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.quantized.rounding import INT4, Bits, rounded, values
from unspool.tuning import ROUNDED_AT_ONCE

_INPUTS = (torch.float32, torch.bfloat16)


class QuantizedWeight(Protocol):
    """A matrix [height, width] with 8 or 4 bits per number, and a bias, which is not quantized."""

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T + bias, in the dtype of the rows. rows: [..., width] --> [..., height]"""
        ...

    def dense(self) -> torch.Tensor:
        """Return the rounded matrix. --> [height, width], float32"""
        ...


class PackedQuantized:
    """A quantized weight for our kernels.

    Args:
        numbers, scales: see `rounded`.
        bias: [height], or None for none.
        pages: memory for the packed matrix.
    """

    def __init__(
        self, numbers: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None, pages: HugePages
    ) -> None:
        self._packed = PackedWeight(numbers, scales=scales, bias=bias, allocate=pages.bytes)

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        if rows.dtype in _INPUTS:
            return linear(rows, self._packed)
        return linear(rows.float(), self._packed).to(rows.dtype)

    def dense(self) -> torch.Tensor:
        scales = self._packed.scales()
        assert scales is not None, "a quantized weight has scales"
        return values(self._packed.unpacked(), scales)


class UnpackedQuantized:
    """A quantized weight that computes its values in each product, some rows of the matrix at a time.

    Each number takes a byte, with 4 bits too.

    Args:
        numbers, scales: see `rounded`.
        bias: [height], or None for none.
    """

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._numbers, self._scales, self._bias = numbers, scales, bias

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        height, width = self._numbers.shape
        step, wide = max(1, ROUNDED_AT_ONCE // width), rows.float()
        parts = [F.linear(wide, self._part(slice(start, start + step))) for start in range(0, height, step)]
        found = torch.cat(parts, -1)
        return (found if self._bias is None else found + self._bias).to(rows.dtype)

    def dense(self) -> torch.Tensor:
        return self._part(slice(None))

    def _part(self, rows: slice) -> torch.Tensor:
        scales = self._scales[:, rows] if self._numbers.dtype == INT4 else self._scales[rows]
        return values(self._numbers[rows], scales)


def quantized_weight(weight: torch.Tensor, bias: torch.Tensor | None, bits: Bits, pages: HugePages) -> QuantizedWeight:
    """Return a matrix [height, width] on the CPU with so many bits per number; for our kernels if they run here."""
    numbers, scales = rounded(weight, bits)
    if kernels() is None:
        return UnpackedQuantized(numbers, scales, bias)
    return PackedQuantized(numbers, scales, bias, pages)

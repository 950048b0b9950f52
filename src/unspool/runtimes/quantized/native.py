"""Quantized weights for our kernels: the numbers and scales of int8.py and int4.py, packed by `unspool.kernels`.

A kernel rounds each row of inputs to 16 bits with a scale of its own. A row has the same bits in any batch.
"""

from __future__ import annotations

from typing import Literal

import torch

from unspool.kernels.library import kernels
from unspool.kernels.packed import PackedWeight, linear
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.quantized import int4, int8

_INPUTS = (torch.float32, torch.bfloat16)


class NativeQuantized:
    """A matrix [height, width] with 8 or 4 bits per number, and a bias.

    Args:
        weight: the matrix, floating-point, on the CPU.
        bias: [height], or None for none. Not quantized.
        bits: of a number. With "int4" the width is a multiple of 32.
        pages: memory for the packed matrix; None for memory of its own.

    Raises:
        RuntimeError: if the kernels cannot be used here.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        bits: Literal["int8", "int4"],
        pages: HugePages | None = None,
    ) -> None:
        numbers, scales = int8.rounded(weight) if bits == "int8" else int4.rounded(weight)
        memory = pages or HugePages()
        self._packed = PackedWeight(
            numbers,
            scales=(scales,),
            bias=() if bias is None else (bias.detach(),),
            allocate=lambda size: memory.empty((size,), torch.uint8),
        )

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T + bias, in the dtype of the rows. rows: [..., width] --> [..., height]"""
        if rows.dtype in _INPUTS:
            return linear(rows, self._packed)
        return linear(rows.float(), self._packed).to(rows.dtype)

    def dense(self) -> torch.Tensor:
        """Return the rounded matrix. --> [height, width], float32"""
        (numbers,), (scales,) = self._packed.unpacked(), self._packed.scales()
        if numbers.dtype == torch.int8:
            return numbers.float() * scales[:, None]
        height, width = numbers.shape
        scale, zero = scales.float().permute(2, 1, 0)[..., None]  # --> [height, groups, 1] each
        groups = numbers.view(height, width // int4.GROUP, int4.GROUP)
        found: torch.Tensor = (groups.float() - int4.MIDDLE) * scale + zero
        return found.view(height, width)


def native_weight(
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    bits: Literal["int8", "int4"],
    pages: HugePages | None,
) -> NativeQuantized | None:
    """Return a quantized weight for our kernels; None if they cannot be used here."""
    return None if kernels() is None else NativeQuantized(weight, bias, bits, pages)

"""Rounding of a matrix to 8 or 4 bits per number.

int8: weight[n, k] ~ number[n, k] * scale[n]
      number in -127 ... 127, scale[n] = largest of row n / 127, in float32
int4: weight[n, k] ~ (number[n, k] - 8) * scale[n, g] + zero[n, g]
      g = k // 32, number in 0 ... 15, scale = (largest - smallest of the group) / 15,
      zero = smallest + 8 * scale, both in bfloat16
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import torch

from unspool.kernels.packed import INT4_GROUP
from unspool.tuning import ROUNDED_AT_ONCE

Bits: TypeAlias = Literal["int8", "int4"]

_LARGEST, _HIGHEST, _MIDDLE = 127, 15, 8
INT4: Final = torch.uint8
"""The dtype of int4 numbers."""


def rounded(weight: torch.Tensor, bits: Bits) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the numbers and scales of a matrix [height, width] on the CPU.

    Returns:
        For int8: numbers [height, width], int8, and scales [height], float32; a row of zeros has the scale 1.
        For int4: numbers [height, width], uint8, and scales and zeros [groups, height, 2], bfloat16.
    """
    return _rounded_int8(weight) if bits == "int8" else _rounded_int4(weight)


def values(numbers: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Return the matrix that numbers and scales stand for. --> [height, width], float32"""
    if numbers.dtype != INT4:
        return numbers.float() * scales[:, None]
    height, width = numbers.shape
    scale, zero = scales.float().permute(2, 1, 0)[..., None]  # --> [height, groups, 1] each
    groups = numbers.view(height, width // INT4_GROUP, INT4_GROUP)
    found: torch.Tensor = (groups.float() - _MIDDLE) * scale + zero
    return found.view(height, width)


def _rounded_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    numbers = torch.empty(weight.shape, dtype=torch.int8, device="cpu")
    scales = torch.empty(len(weight), dtype=torch.float32, device="cpu")
    block = max(1, ROUNDED_AT_ONCE // weight.shape[1])
    for start in range(0, len(weight), block):
        part = weight[start : start + block].float()
        largest = part.abs().amax(1)
        scale = torch.where(largest > 0, largest / _LARGEST, 1.0)
        scales[start : start + block] = scale
        numbers[start : start + block] = (part / scale[:, None]).round_()
    return numbers, scales


def _rounded_int4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    height, width = weight.shape
    numbers = torch.empty(height, width, dtype=INT4, device="cpu")
    pairs = torch.empty(width // INT4_GROUP, height, 2, dtype=torch.bfloat16, device="cpu")
    block = max(1, ROUNDED_AT_ONCE // width)
    for start in range(0, height, block):
        groups = weight[start : start + block].float().view(-1, width // INT4_GROUP, INT4_GROUP)
        smallest, largest = groups.aminmax(dim=2)
        scale = ((largest - smallest) / _HIGHEST).bfloat16().float()
        zero = (smallest + _MIDDLE * scale).bfloat16().float()
        # A group of equal values has a scale of 0; its zero is the value.
        steps = (groups - zero[..., None]) / torch.where(scale > 0, scale, 1.0)[..., None]
        numbers[start : start + block] = steps.round_().add_(_MIDDLE).clamp_(0, _HIGHEST).view(-1, width)
        pairs[:, start : start + block] = torch.stack((scale, zero), 2).transpose(0, 1)
    return numbers, pairs

"""int8: a matrix with 8 bits per number, and products with it on a CPU.

    weight[n, k] ~ number[n, k] * scale[n]       number in -127 ... 127, scale[n] = largest of row n / 127

Inputs are not rounded to 8 bits: each row becomes two digits of 8 bits, 16 bits in all, with a scale of its own.
Integers are multiplied exactly, so that only the weight loses precision. A weight is read once for both digits, so that
the second digit costs nothing for few rows. A row has the same bits in any batch.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Final, Protocol

import torch
import torch.nn.functional as F

from unspool.tuning import ROUNDED_AT_ONCE

MAX_WIDTH: Final = 1 << 16
"""Most columns of a matrix: sums of products of two 8-bit numbers stay below 2**31."""

_LARGEST: Final = 127
"""The largest number of a quantized weight."""

_VECTOR: Final = 64
"""The kernel of `_Mixed` reads this many numbers at once."""

_FULL_DIGIT, _SHORT_DIGIT = 127, 63
"""The largest digits. Some CPUs add pairs of products in 16 bits, which overflow; they get digits of 7 bits."""


class Int8Weight:
    """A matrix [height, width] with 8 bits per number.

    Args:
        weight: the matrix, floating-point, on the CPU; at most `MAX_WIDTH` wide.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        numbers, scales = rounded(weight)
        digit = whole_digit()
        self._kernel: _Kernel = _Mixed(numbers, scales) if digit is None else _Whole(numbers, scales, digit)

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T. rows: [count, width], floating-point. --> [count, height], float32"""
        return self._kernel.times(rows)

    def dense(self) -> torch.Tensor:
        """Return the rounded matrix. --> [height, width], float32"""
        return self._kernel.dense()


class _Kernel(Protocol):
    def times(self, rows: torch.Tensor) -> torch.Tensor: ...

    def dense(self) -> torch.Tensor: ...


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers [height, width], int8, and scales [height], float32. A row of zeros has the scale 1."""
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


class _Whole:
    """Products of integers: the kernel of PyTorch's quantized layers.

    The kernel would use one scale for all rows of a pass. It gets digits, which are integers already.

    Args:
        digit: the largest digit.
    """

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor, digit: int) -> None:
        zeros = torch.zeros(len(scales), dtype=torch.int64, device="cpu")
        with warnings.catch_warnings():
            # PyTorch warns that it will remove such tensors. `whole_digit` finds out if they are gone.
            warnings.simplefilter("ignore")
            tensor = torch._make_per_channel_quantized_tensor(numbers, scales.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(tensor, None)
        self._linear = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self._digit, self._base, self._height = digit, 2.0 * (digit + 1), len(scales)

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        count = len(rows)
        if not count:
            return rows.new_empty(0, self._height, dtype=torch.float32)
        wide = rows.float()
        steps = wide.abs().amax(1, keepdim=True).div_(self._digit)
        # A row of zeros has steps of 0 and undefined digits; the last product makes it 0 again.
        first = wide / steps
        digits = first.round()
        first.sub_(digits).mul_(self._base)
        found: torch.Tensor = self._linear(torch.cat((digits, first)), 1.0, self._digit + 1, self._packed)
        # The base is a power of two: only the sum rounds, so that bits do not depend on the place of a number.
        return found[:count].add_(found[count:], alpha=1 / self._base).mul_(steps)

    def dense(self) -> torch.Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tensor, _ = torch.ops.quantized.linear_unpack(self._packed)
            plain: torch.Tensor = tensor.int_repr().float() * tensor.q_per_channel_scales().float()[:, None]
            return plain


class _Mixed:
    """Products of bfloat16 inputs with 8-bit numbers: every build of PyTorch has this kernel for a CPU."""

    def __init__(self, numbers: torch.Tensor, scales: torch.Tensor) -> None:
        # The kernel reads whole vectors, even past the end of a row.
        self._missing = -numbers.shape[1] % _VECTOR
        self._numbers, self._scales = F.pad(numbers, (0, self._missing)), scales
        self._ones = torch.ones(len(scales), dtype=torch.bfloat16, device="cpu")

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        # Scales are applied afterwards, because the kernel would round them to bfloat16.
        padded = F.pad(rows.bfloat16(), (0, self._missing)).contiguous()
        found: torch.Tensor = torch.ops.aten._weight_int8pack_mm(padded, self._numbers, self._ones)
        return found.float().mul_(self._scales)

    def dense(self) -> torch.Tensor:
        width = self._numbers.shape[1] - self._missing
        return self._numbers[:, :width].float() * self._scales[:, None]


@cache
def whole_digit() -> int | None:
    """Return the largest digit that this CPU multiplies exactly; None if PyTorch has no kernel.

    Found by a product with the largest possible sums.
    """
    for digit in (_FULL_DIGIT, _SHORT_DIGIT):
        numbers = torch.full((32, 64), _LARGEST, dtype=torch.int8, device="cpu")
        numbers[::2, ::3] = -_LARGEST
        rows = torch.full((3, 64), float(digit), dtype=torch.float32, device="cpu")
        rows[1, ::2] = -digit
        try:
            found = _Whole(numbers, torch.ones(32, dtype=torch.float32, device="cpu"), digit).times(rows)
        except (RuntimeError, AttributeError, NotImplementedError):
            return None
        if torch.equal(found, rows @ numbers.float().T):
            return digit
    return None

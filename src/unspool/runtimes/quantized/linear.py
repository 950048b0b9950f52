"""A linear layer with a quantized weight: 8 or 4 bits per number.

Owns the attributes that models read from a layer. Does not know how numbers are rounded (rounding.py) and multiplied
(weights.py), or which layers are replaced (quantize.py).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.machine.huge_pages import HugePages
from unspool.runtimes.quantized.rounding import Bits
from unspool.runtimes.quantized.weights import quantized_weight
from unspool.runtimes.weights.lazy_weight import LazyWeight, Readings


class QuantizedLinear(nn.Module):
    """`nn.Linear` or `Conv1D` over a quantized copy of its weight; inputs and outputs stay floating-point.

    Copy, pickle and state_dict raise `TypeError`, because they cannot read the packed weight.

    Args:
        layer: an `nn.Linear` or a `Conv1D` on the CPU. It is not needed afterwards.
        bits: of the rounded weight.
        pages: memory for a weight of our kernels; None for memory of its own.

    Attributes:
        bits: as given.
        shape: of `weight`.
        bias: the layer's own, not quantized.
        weight: dtype and shape of the plain weight; its values are the rounded ones, computed when read.
    """

    def __init__(self, layer: nn.Linear | Conv1D, bits: Bits, pages: HugePages | None = None) -> None:
        super().__init__()
        self.is_transposed = isinstance(layer, Conv1D)
        plain = layer.weight.detach()
        self.in_features, self.out_features = plain.shape if self.is_transposed else plain.shape[::-1]
        self.bits, self.bias = bits, layer.bias
        weight, bias = plain.T if self.is_transposed else plain, None if layer.bias is None else layer.bias.detach()
        self._quantized = quantized_weight(weight, bias, bits, pages or HugePages())
        self.shape, self._readings = plain.shape, Readings()
        # A buffer, so that its dtype changes with that of the model.
        self.register_buffer("_one", torch.ones((), dtype=plain.dtype, device=plain.device), persistent=False)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the plain weight."""
        one: torch.Tensor = self._buffers["_one"]  # type: ignore[assignment]
        return one.dtype

    @property
    def weight(self) -> torch.Tensor:
        """The rounded weight in the layout of the replaced layer. Its values are computed when read; see `Readings`."""
        kept = self._readings.kept
        if kept is not None and kept.dtype == self.dtype:
            return kept
        if kept is not None:
            self._readings = Readings()  # the model got another type
        return LazyWeight(self.shape, self.dtype, partial(self._readings.values, self.dense))

    def dense(self) -> torch.Tensor:
        """Return the rounded weight, in the layout and dtype of the replaced layer."""
        weight = self._quantized.dense().to(self.dtype)
        return weight.T if self.is_transposed else weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self._quantized.times(inputs)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, {self.bits}"

    def _save_to_state_dict(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("a quantized linear layer holds no weight to save: save the model it was made from")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a quantized linear layer cannot be copied or pickled: copy or save the model it was made from")

"""Batch invariance of linear layers: each row has the same bits beside any other rows of the call.

Our kernels have this property. Other products, and elementwise functions, are called in another way: see
invariant_calls.py.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.kernels.library import kernels
from unspool.runtimes.module_tree import parameters_of
from unspool.runtimes.quantized.info import shares_rounding
from unspool.runtimes.quantized.linear import QuantizedLinear
from unspool.runtimes.weights.packed_linear import PackedLinear, is_plain


class BatchInvariance(NamedTuple):
    """How each row of a model keeps its bits in any batch.

    row_by_row: True if some products need one call per row; see `InvariantCalls`. obstacle: why it is impossible, and a
    way out; "" if possible.
    """

    row_by_row: bool = False
    obstacle: str = ""


def batch_invariance(model: nn.Module) -> BatchInvariance:
    """Return how the matrix products of a model on the CPU give each row the same bits in any batch.

    A matrix that belongs to no linear layer or embedding, such as that of experts, can treat its rows together.
    """
    if shares_rounding(model):
        return _impossible('another library has quantized its layers; load it with quantize="int8" or "int4" instead')
    packed: list[bool] = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D, PackedLinear, QuantizedLinear)) and is_plain(module):
            packed.append(isinstance(module, (PackedLinear, QuantizedLinear)) and kernels() is not None)
        elif not isinstance(module, nn.Embedding) and any(p.ndim > 1 for p in parameters_of([module])):
            return _impossible(f"`{name}` ({type(module).__name__}) can treat its rows together")
    return BatchInvariance(row_by_row=not all(packed)) if packed else _impossible("it has no linear layers")


def _impossible(reason: str) -> BatchInvariance:
    return BatchInvariance(obstacle=reason)

"""Batch invariance of linear layers: each row has the same bits, whatever other rows are in the call.

Our kernels have this property. Other products make one call per row. Elementwise functions are in
invariant_elementwise.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from unspool.kernels.library import kernels
from unspool.runtimes.quantized.info import shares_rounding
from unspool.runtimes.quantized.linear import QuantizedLinear
from unspool.runtimes.weights.packed_linear import PackedLinear, is_plain

# Functions that multiply rows by a weight: the index of the rows among the arguments.
_PRODUCTS: Mapping[Callable[..., Any], int] = {F.linear: 0, torch.addmm: 1}


class RowByRow(TorchFunctionMode):
    """While the mode is on, PyTorch's products make one call per row, which no other row can change.

    Each call reads the whole weight again.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options, place = kwargs or {}, _PRODUCTS.get(func)
        if place is None or len(args) < place + 2 or not args[place].numel():
            return func(*args, **options)
        rows = args[place]
        # Copied, because kernels can also depend on how memory is aligned.
        each = [row.clone() for row in rows.reshape(-1, rows.shape[-1]).split(1)]
        found = torch.cat([func(*args[:place], row, *args[place + 1 :], **options) for row in each])
        return found.view(*rows.shape[:-1], found.shape[-1])


class BatchInvariance(NamedTuple):
    """How each row of a model keeps its bits in any batch.

    row_by_row: True if some products need one call per row; see `RowByRow`. obstacle: why it is impossible, and a way
    out; "" if possible.
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
        elif not isinstance(module, nn.Embedding) and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            return _impossible(f"`{name}` ({type(module).__name__}) can treat its rows together")
    return BatchInvariance(row_by_row=not all(packed)) if packed else _impossible("it has no linear layers")


def _impossible(reason: str) -> BatchInvariance:
    return BatchInvariance(obstacle=reason)

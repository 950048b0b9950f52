"""Batch invariance of linear layers: each row has the same bits, whatever other rows are in the call.

Owns the trial of a model's linear layers, and the way out for layers that fail it: one call per row. Elementwise
functions are in invariant_elementwise.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from unspool.runtimes.quantized.info import shares_rounding
from unspool.runtimes.quantized.linear import QuantizedLinear
from unspool.runtimes.weights.invariant_rows import invariant_rows
from unspool.runtimes.weights.packed_linear import PackedLinear, is_plain

_PROBE_ROWS = (2, 3, 5, 17, 33)
# The first rows, in the largest call, of the smaller calls.
_PROBE_STARTS = (0, 6)
# Functions that multiply rows by a weight: the index of the rows among the arguments. The weight comes next.
_PRODUCTS: Mapping[Callable[..., Any], int] = {
    F.linear: 0,
    torch.addmm: 1,
    torch.ops.mkldnn._linear_pointwise: 0,
}


class Product(NamedTuple):
    """The properties of a matrix product that select the kernel."""

    func: Callable[..., Any]
    weight_shape: torch.Size
    dtype: torch.dtype


class RowByRow(TorchFunctionMode):
    """While the mode is on, chosen matrix products make one call per row, which no other row can change.

    Each call reads the whole weight again.

    Args:
        chosen: the products to split; None for all.

    Attributes:
        split: the products that were split.
    """

    def __init__(self, chosen: frozenset[Product] | None = None) -> None:
        super().__init__()
        self._chosen = chosen
        self.split: set[Product] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options, place = kwargs or {}, _PRODUCTS.get(func)
        if place is None or len(args) < place + 2:
            return func(*args, **options)
        rows, weight = args[place], args[place + 1]
        product = Product(func, weight.shape, weight.dtype)
        if (self._chosen is not None and product not in self._chosen) or not rows.numel():
            return func(*args, **options)
        self.split.add(product)
        # Copied, because kernels can also depend on how memory is aligned.
        each = [row.clone() for row in rows.reshape(-1, rows.shape[-1]).split(1)]
        found = torch.cat([func(*args[:place], row, *args[place + 1 :], **options) for row in each])
        return found.view(*rows.shape[:-1], found.shape[-1])


class BatchInvariance(NamedTuple):
    """How each row of a model keeps its bits in any batch.

    row_by_row: products that need one call per row. obstacle: why it is impossible, and a way out; "" if possible.
    """

    row_by_row: frozenset[Product] = frozenset()
    obstacle: str = ""


def batch_invariance(model: nn.Module) -> BatchInvariance:
    """Return how the matrix products of a model on the CPU give each row the same bits in any batch.

    One layer of each shape is tried with 2 to 33 rows: as it is, then row by row. A matrix that belongs to no linear
    layer or embedding, such as that of experts, cannot be tried.
    """
    if shares_rounding(model):
        return _impossible('another library has quantized its layers; load it with quantize="int8" or "int4" instead')
    layers: dict[_Shape, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, (nn.Linear, Conv1D, PackedLinear, QuantizedLinear)) and is_plain(module):
            layers[_shape_of(module)] = module
        elif not isinstance(module, nn.Embedding) and any(p.ndim > 1 for p in module.parameters(recurse=False)):
            return _impossible(f"`{name}` ({type(module).__name__}) can treat its rows together")
    if not layers:
        return _impossible("it has no linear layers")
    found = {shape: _trial(shape, layer) for shape, layer in layers.items()}
    if dependent := [shape for shape, products in found.items() if products is None]:
        return _impossible(
            f"a row depends on the other rows in linear layers of {', '.join(map(str, dependent))}; "
            f"try another number of threads (OMP_NUM_THREADS), dtype, or UNSPOOL_LINEAR=plain or packed"
        )
    return BatchInvariance(frozenset(product for products in found.values() for product in products or ()))


def _impossible(reason: str) -> BatchInvariance:
    return BatchInvariance(obstacle=reason)


class _Shape(NamedTuple):
    kind: str
    in_features: int
    out_features: int
    dtype: torch.dtype
    has_bias: bool
    threads: int

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.in_features} x {self.out_features} ({self.kind}, {dtype}, {threads})"


def _shape_of(layer: nn.Linear | Conv1D | PackedLinear | QuantizedLinear) -> _Shape:
    if isinstance(layer, Conv1D):
        width, height = layer.weight.shape
    else:
        width, height = layer.in_features, layer.out_features
    kind, dtype = type(layer).__name__, layer.weight.dtype if not isinstance(layer, PackedLinear) else layer.dtype
    if isinstance(layer, QuantizedLinear):
        kind = layer.bits
    return _Shape(kind, width, height, dtype, layer.bias is not None, torch.get_num_threads())


_TRIALS: dict[_Shape, frozenset[Product] | None] = {}
"""Results of this process: the shape decides which kernel runs, not the weights."""


def _trial(shape: _Shape, layer: nn.Module) -> frozenset[Product] | None:
    """Return the products of a layer that need one call per row; None if even that does not help."""
    if shape not in _TRIALS:
        generator = torch.Generator("cpu").manual_seed(0)
        inputs = torch.randn(
            _PROBE_ROWS[-1], shape.in_features, generator=generator, dtype=torch.float32, device="cpu"
        ).to(shape.dtype)
        with torch.no_grad(), invariant_rows():
            products: frozenset[Product] | None = frozenset()
            if not _is_independent(layer, inputs):
                with RowByRow() as mode:
                    products = frozenset(mode.split) if _is_independent(layer, inputs) else None
        _TRIALS[shape] = products
    return _TRIALS[shape]


def _is_independent(layer: nn.Module, inputs: torch.Tensor) -> bool:
    together = layer(inputs)
    return all(
        torch.equal(layer(inputs[start : start + count]), together[start : start + count])
        for count in _PROBE_ROWS
        for start in _PROBE_STARTS
    )

"""Batch invariance of PyTorch's calls: a row has the same bits beside any other rows of the tensor.

On a CPU, PyTorch computes exp, tanh, cos and similar functions with vector instructions. The last few numbers of a
tensor, and of the part of each thread, take scalar instructions, which round differently. Matrix products choose a
kernel by the number of rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

# Numbers per iteration of the vector loop: two vectors of the widest instruction set in the smallest dtype.
_STRIDE = 64
# Below PyTorch's grain size of 32,768 numbers, so that one thread computes a block.
_BLOCK = 1 << 14

_NAMES = ("cos", "erf", "exp", "expm1", "log", "log1p", "sigmoid", "sin", "tanh")
_FUNCTIONS: frozenset[Callable[..., Any]] = frozenset(
    [getattr(owner, name) for owner in (torch, torch.Tensor) for name in _NAMES]
    + [F.celu, F.elu, F.gelu, F.logsigmoid, F.mish, F.selu, F.sigmoid, F.silu, F.softplus, F.tanh]
)
# Functions that multiply rows by a weight: the index of the rows among the arguments.
_PRODUCTS: Mapping[Callable[..., Any], int] = {F.linear: 0, torch.addmm: 1}


class InvariantCalls(TorchFunctionMode):
    """In this mode, elementwise functions get whole vectors: padded input, in blocks that one thread computes.

    Args:
        row_by_row: True if products with plain weights make one call per row. Each call reads the whole weight again.
    """

    def __init__(self, *, row_by_row: bool) -> None:
        super().__init__()
        self._row_by_row = row_by_row

    def rewritten(self, func: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function to call in place of `func`: often itself."""
        if func in _FUNCTIONS:
            return _in_whole_vectors(func)
        return _row_by_row(func) if self._row_by_row and func in _PRODUCTS else func

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        return self.rewritten(func)(*args, **(kwargs or {}))


@cache
def _in_whole_vectors(func: Callable[..., Any]) -> Callable[..., Any]:
    def invariant(numbers: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        count = numbers.numel()
        if options.get("inplace") or (count <= _BLOCK and count % _STRIDE == 0 and numbers.is_contiguous()):
            result: torch.Tensor = func(numbers, *args, **options)
            return result
        flat = F.pad(numbers.reshape(-1), (0, -count % _STRIDE))
        blocks = [func(block, *args, **options) for block in torch.split(flat, _BLOCK)]
        return torch.cat(blocks)[:count].view(numbers.shape)

    return invariant


@cache
def _row_by_row(func: Callable[..., Any]) -> Callable[..., Any]:
    place = _PRODUCTS[func]

    def invariant(*args: Any, **options: Any) -> torch.Tensor:
        rows = args[place]
        if not rows.numel():
            result: torch.Tensor = func(*args, **options)
            return result
        # Copied, because kernels can also depend on how memory is aligned.
        each = [row.clone() for row in rows.reshape(-1, rows.shape[-1]).split(1)]
        found = torch.cat([func(*args[:place], row, *args[place + 1 :], **options) for row in each])
        return found.view(*rows.shape[:-1], found.shape[-1])

    return invariant

"""Batch-invariant elementwise functions: the bits of a number do not depend on its place in a tensor.

On a CPU, PyTorch computes exp, tanh, cos and similar functions with vector instructions. The last few numbers of a
tensor, and of the part of each thread, take scalar instructions, which round differently. Without this module, the
result for one row would depend on the number of rows in the tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
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


class InvariantElementwise(TorchFunctionMode):
    """In this mode, elementwise functions get whole vectors: padded input, in blocks that one thread computes."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if func in _FUNCTIONS and args and not options.get("inplace"):
            return _in_whole_vectors(func, args[0], args[1:], options)
        return func(*args, **options)


def _in_whole_vectors(
    func: Callable[..., Any], numbers: torch.Tensor, args: Sequence[Any], options: Mapping[str, Any]
) -> torch.Tensor:
    count = numbers.numel()
    if count <= _BLOCK and count % _STRIDE == 0 and numbers.is_contiguous():
        result: torch.Tensor = func(numbers, *args, **options)
        return result
    flat = F.pad(numbers.reshape(-1), (0, -count % _STRIDE))
    blocks = [func(block, *args, **options) for block in torch.split(flat, _BLOCK)]
    return torch.cat(blocks)[:count].view(numbers.shape)

"""A tensor for the weight of a packed or quantized layer: type and shape are known, values are computed when read.

Some models (T5) read the type of a weight in every forward pass. Unpacking the weight for that takes longer than the
matrix product.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map


class LazyWeight(torch.Tensor):
    """A read-only tensor on the CPU that calls `compute` for each operation that reads its values.

    Args:
        shape: of the weight.
        dtype: of the weight.
        compute: returns the values, a tensor of this shape and dtype. They are not kept.
    """

    _compute: Callable[[], torch.Tensor]

    @staticmethod
    def __new__(cls, shape: torch.Size, dtype: torch.dtype, compute: Callable[[], torch.Tensor]) -> LazyWeight:
        make: Any = torch.Tensor._make_wrapper_subclass
        made: LazyWeight = make(cls, shape, dtype=dtype, device="cpu")
        made._compute = compute
        return made

    def __init__(self, shape: torch.Size, dtype: torch.dtype, compute: Callable[[], torch.Tensor]) -> None: ...

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            raise TypeError("the weight of a packed or quantized layer cannot be changed; change the plain model")
        read = lambda value: value._compute() if isinstance(value, cls) else value  # noqa: E731
        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))

"""A tensor for the weight of a packed or quantized layer: type and shape are known, values are computed when read.

Some models (T5) read the type of a weight in every forward pass. Unpacking the weight for that takes longer than the
matrix product. Embeddings read a few rows: see tied_embeddings.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeAlias

import torch
from torch.utils._pytree import tree_map

Rows: TypeAlias = Callable[[torch.Tensor], torch.Tensor]

_MOST_READINGS: Final = 2
"""Readings of a weight before its values are kept."""

_EMBEDDING: Final = torch.ops.aten.embedding.default
_SELECT: Final = torch.ops.aten.select.int


class Readings:
    """Counts the readings of a weight, and keeps its values after some: some models (Mamba) read one in every pass.

    Attributes:
        kept: the values, the same tensor each time, so that a pass can be recorded; None before.
    """

    def __init__(self) -> None:
        self._number = 0
        self.kept: torch.Tensor | None = None

    def values(self, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Return the kept values; without them count the reading, and return the result of `compute`."""
        if self.kept is not None:
            return self.kept
        values = compute()
        self._number += 1
        if self._number > _MOST_READINGS:
            self.kept = values
        return values


class LazyWeight(torch.Tensor):
    """A read-only tensor on the CPU that calls `compute` for each operation that reads its values.

    Args:
        shape: of the weight.
        dtype: of the weight.
        compute: returns the values, a tensor of this shape and dtype. They are not kept.
        rows: returns the rows of these ids, [...] --> [..., width], for operations that read no others. None if rows
            cannot be computed alone.
    """

    _compute: Callable[[], torch.Tensor]
    rows: Rows | None

    @staticmethod
    def __new__(
        cls, shape: torch.Size, dtype: torch.dtype, compute: Callable[[], torch.Tensor], rows: Rows | None = None
    ) -> LazyWeight:
        make: Any = torch.Tensor._make_wrapper_subclass
        made: LazyWeight = make(cls, shape, dtype=dtype, device="cpu")
        made._compute, made.rows = compute, rows
        return made

    def __init__(
        self, shape: torch.Size, dtype: torch.dtype, compute: Callable[[], torch.Tensor], rows: Rows | None = None
    ) -> None: ...

    def __deepcopy__(self, _: Any) -> NoReturn:
        raise TypeError("the weight of a packed or quantized layer cannot be copied or pickled: use the plain model's")

    def __reduce_ex__(self, _: Any) -> NoReturn:
        self.__deepcopy__(_)

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func._schema.is_mutable:
            raise TypeError("the weight of a packed or quantized layer cannot be changed; change the plain model")
        weight = args[0] if args else None
        if isinstance(weight, cls) and weight.rows is not None:
            if func is _EMBEDDING:
                return weight.rows(args[1])
            if func is _SELECT and args[1] == 0:
                row = args[2] if args[2] >= 0 else args[2] + len(weight)
                return weight.rows(torch.tensor(row, dtype=torch.int64, device="cpu"))
        read = lambda value: value._compute() if isinstance(value, cls) else value  # noqa: E731
        return func(*tree_map(read, args), **tree_map(read, kwargs or {}))

"""Operators of PyTorch that a list of calls can repeat: no value-dependent results, no writes into lasting tensors.

Reads operator schemas and tags. Knows no models, graphs or caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_INDEXING = frozenset((_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index))
_DYNAMIC_SHAPE = "makes a tensor with a size that depends on values"
_WITHOUT_PARTS: set[Any] = set()
"""Operators that do not consist of other operators, as far as traces have found them."""


class Unrecordable(Exception):
    """A list of calls cannot repeat the pass; the message says why."""


class RepeatableOperators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While the mode is on, a list of calls must be able to repeat each operator of this thread.

    Shapes must not depend on values, so that the recorded shapes hold for other tokens. Operators must write only into
    tensors of the pass itself, so that the pass can run a second time.

    Args:
        written: lasting tensors that operators can change in place.

    Attributes:
        num_writes: number of tensors that operators have changed in place.

    Raises:
        Unrecordable: if an operator reads values, has a result of data-dependent size, or changes a lasting tensor.
    """

    def __init__(self, written: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.num_writes = 0
        self._made_here: set[int | None] = set(map(_storage, written))

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = dict(kwargs or {})
        if func not in _WITHOUT_PARTS:
            with self:
                # A composite operator is repeatable if its parts are.
                result = func.decompose(*args, **options)
            if result is not NotImplemented:
                return result
            _WITHOUT_PARTS.add(func)
        if reason := value_dependence(func, args):
            raise Unrecordable(f"it {reason} ({func})")
        for tensor in _written_tensors(func, args, options):
            self.num_writes += 1
            if _storage(tensor) not in self._made_here:
                raise Unrecordable(f"it changes a tensor that outlives the pass ({func})")
        if _returns_arguments(func):
            return func(*args, **options)
        given = set(_storages([*args, *options.values()]))
        result = func(*args, **options)
        self._made_here.update(storage for storage in _storages(result) if storage not in given)
        return result


def value_dependence(func: Any, args: Sequence[Any]) -> str:
    """Return how a call depends on the values of its tensors beyond its numbers, or "" if it does not.

    Args:
        func: an operator that does not consist of other operators (an `OpOverload`).
        args: positional arguments of the call.
    """
    if _is_indexing(func):
        by_mask = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1]))
        return _DYNAMIC_SHAPE if by_mask else ""
    return _tagged_dependence(func)


@cache
def _is_indexing(func: Any) -> bool:
    return func.overloadpacket in _INDEXING


@cache
def _tagged_dependence(func: Any) -> str:
    if torch.Tag.data_dependent_output in func.tags:
        return "reads values of tensors"
    return _DYNAMIC_SHAPE if torch.Tag.dynamic_output_shape in func.tags else ""


def _written_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the arguments that a call changes in place, as the operator's schema declares them."""
    for index, name in _written_arguments(func):
        yield from _tensors(args[index] if index < len(args) else kwargs.get(name))


@cache
def _written_arguments(func: Any) -> list[tuple[int, str]]:
    """Return the place and the name of each argument that a call changes in place."""
    arguments = enumerate(func._schema.arguments)
    return [(index, each.name) for index, each in arguments if each.alias_info is not None and each.alias_info.is_write]


@cache
def _returns_arguments(func: Any) -> bool:
    """Return True if all results of a call are views of arguments, or arguments."""
    return all(each.alias_info is not None for each in func._schema.returns)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Yield the tensors in an argument or result of an operator: a tensor, a number, or nested lists of them."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _tensors(each)


def _storages(value: Any) -> Iterator[int | None]:
    return map(_storage, _tensors(value))


def _storage(tensor: torch.Tensor) -> int | None:
    """Return the identity of a tensor's memory; None for a packed weight, which lacks a storage."""
    try:
        storage: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
    return storage

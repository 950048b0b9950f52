"""Properties of PyTorch's operators that decide whether a list of calls can repeat a pass.

Reads operator schemas and tags. Knows no models, tracers or CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

_ATEN = torch.ops.aten
_INDEXING = frozenset((_ATEN.index, _ATEN.index_put, _ATEN.index_put_, _ATEN._index_put_impl_, _ATEN._unsafe_index))
_DYNAMIC_SHAPE = "makes a tensor whose size depends on values"


def value_dependence(func: Any, args: Sequence[Any]) -> str:
    """Return how a call depends on the values of its tensors beyond its numbers, or "" if it does not.

    Args:
        func: an operator that does not consist of other operators (an `OpOverload`).
        args: positional arguments of the call.
    """
    if func.overloadpacket in _INDEXING:
        by_mask = any(isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1]))
        return _DYNAMIC_SHAPE if by_mask else ""
    if torch.Tag.data_dependent_output in func.tags:
        return "reads values of tensors"
    return _DYNAMIC_SHAPE if torch.Tag.dynamic_output_shape in func.tags else ""


def written_tensors(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
    """Yield the arguments that a call changes in place, as the operator's schema declares them."""
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[index] if index < len(args) else kwargs.get(argument.name)
        yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))

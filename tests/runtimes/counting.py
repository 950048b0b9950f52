"""Counts what PyTorch makes: elements of new tensors, not of views."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NewTensors(TorchDispatchMode):
    """Notes the size of every tensor that is made while the context lasts and shares no memory with what it came from.

    sizes: number of elements of each. names: of the operators, in the order called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        given = {_memory(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each for each in tree_leaves(result) if isinstance(each, torch.Tensor) and _memory(each) not in given]
        self.sizes += [each.numel() for each in made]
        return result


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()

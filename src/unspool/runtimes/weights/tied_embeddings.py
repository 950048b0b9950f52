"""Tied embeddings: an embedding reads its rows from the packed weight of the head, so that it is in memory once.

Owns the choice of the embeddings. They keep their class, so a subclass that scales its rows does so as before. Does not
know how a weight is packed.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import TypeGuard

import torch
from torch import nn

from unspool.runtimes.module_tree import modules_in


def weights_to_free(model: nn.Module, packed: Set[int]) -> dict[int, list[nn.Embedding]]:
    """Return the plain weights that no module needs after packing: id of a weight --> embeddings that share it.

    A weight that another module holds too stays plain, because it stays in memory.

    Args:
        model: the module tree before packing.
        packed: ids of the `nn.Linear` and `Conv1D` that will be packed.
    """
    holders: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in modules_in(model):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                holders.setdefault(id(parameter), []).append((module, name))
    found: dict[int, list[nn.Embedding]] = {}
    for key, uses in holders.items():
        layers = [module for module, name in uses if id(module) in packed and name == "weight"]
        embeddings = [module for module, name in uses if _can_read_rows(module) and name == "weight"]
        has_rows = not embeddings or all(type(layer) is nn.Linear for layer in layers)
        if layers and has_rows and len(layers) + len(embeddings) == len(uses):
            found[key] = embeddings
    return found


def _can_read_rows(module: nn.Module) -> TypeGuard[nn.Embedding]:
    """Return whether a module is an embedding that changes no row when it reads it."""
    return isinstance(module, nn.Embedding) and module.max_norm is None


def read_rows(embeddings: Sequence[nn.Embedding], weight: torch.Tensor) -> None:
    """Let embeddings read the rows of `weight`, a `LazyWeight`. It takes the place of their parameter."""
    for embedding in embeddings:
        embedding._parameters["weight"] = weight  # type: ignore[assignment]

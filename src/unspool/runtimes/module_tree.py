"""The modules and tensors of a module tree, in PyTorch's order.

`nn.Module.modules()` nests one generator per level, so a walk costs more than the work of most walks.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import nn

COLLECTIONS: Final = frozenset(name for name, value in vars(nn.Module()).items() if isinstance(value, dict | set))
"""The collections that PyTorch keeps in every module, such as its parameters and hooks: most of its attributes."""


def modules_in(tree: nn.Module) -> list[nn.Module]:
    """Return every module of the tree once, parents first, in the order of `tree.modules()`."""
    found: dict[int, nn.Module] = {}
    pending: list[nn.Module] = [tree]
    while pending:
        module = pending.pop()
        if id(module) not in found:
            found[id(module)] = module
            if module._modules:
                pending += [child for child in reversed(module._modules.values()) if child is not None]
    return list(found.values())


def parameters_of(modules: list[nn.Module]) -> list[nn.Parameter]:
    """Return every parameter of these modules once, in the order of `tree.parameters()`."""
    held = [module._parameters for module in modules if module._parameters]
    return list({id(each): each for some in held for each in some.values() if each is not None}.values())


def buffers_of(modules: list[nn.Module]) -> list[torch.Tensor]:
    """Return every buffer of these modules once, in the order of `tree.buffers()`."""
    held = [module._buffers for module in modules if module._buffers]
    return list({id(each): each for some in held for each in some.values() if each is not None}.values())

"""Base class of modules that hold memory for our kernels."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn

from torch import nn

from unspool.runtimes.module_tree import modules_in


class KernelModule(nn.Module):
    """A module on our kernels. Its parameters are its only state, so a copy of a module tree shares it."""

    @abstractmethod
    def repack(self) -> None:
        """Read the parameters again, after their values have changed."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        name = type(self).__name__
        raise TypeError(f"a {name} cannot be copied or pickled: copy or save the model that it was made from")


def repack(model: nn.Module) -> None:
    """Let every module of `model` on our kernels read its parameters again."""
    for module in modules_in(model):
        if isinstance(module, KernelModule):
            module.repack()

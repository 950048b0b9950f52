"""RMSNorm modules that make one call of our kernel each, with the bits of their operators.

Each family of models has another class, so a module is recognized by its results.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Final

import torch
from torch import nn

from unspool.kernels.library import INPUT_TYPES
from unspool.kernels.rows import SHORTEST_ROW, Norm, rms_norm, sum_lanes
from unspool.runtimes.module_tree import COLLECTIONS
from unspool.runtimes.weights.kernel_module import KernelModule

_UNREAD: Final = COLLECTIONS | {"training"}
"""Attributes of a module that an RMSNorm does not read: those without its eps, and its mode."""


class KernelRMSNorm(KernelModule):
    """An RMSNorm on our kernel.

    Args:
        module: the module to replace, which runs for inputs of another dtype than its weight.
        eps, rounds: see `Norm`.
    """

    _plain: tuple[nn.Module]
    _eps: float
    _rounds: bool
    _norm: Norm

    def __init__(self, module: nn.Module, eps: float, *, rounds: bool) -> None:
        super().__init__()
        self._parameters.update(module._parameters)
        # The module is in a tuple, so that it is not in the tree. An assignment by `nn.Module` takes a microsecond.
        vars(self).update(_plain=(module,), _eps=eps, _rounds=rounds)
        self.repack()

    def repack(self) -> None:
        weight: Any = self._parameters["weight"]
        vars(self)["_norm"] = Norm(weight, self._eps, weight.dtype, rounds=self._rounds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._norm.dtype or x.stride(-1) != 1:
            found: torch.Tensor = self._plain[0](x)
            return found
        return rms_norm(x, self._norm)


def kernel_rms_norm(module: nn.Module) -> KernelRMSNorm | None:
    """Return a norm with the bits of a plain module on the CPU; None if the module is not an RMSNorm."""
    if not _has_form(module) or sum_lanes() is None:
        return None
    kind: Any = type(module)
    weight = module._parameters["weight"]
    attributes = tuple((name, value) for name, value in vars(module).items() if name not in _UNREAD)
    eps = [value for _, value in attributes if type(value) is float]
    if weight is None or len(eps) != 1:
        return None
    try:
        rounds = _rounding(kind, kind.forward, attributes, weight.shape[0], weight.dtype)
    except TypeError:  # an attribute cannot be hashed
        rounds = _rounding.__wrapped__(kind, kind.forward, attributes, weight.shape[0], weight.dtype)
    return None if rounds is None else KernelRMSNorm(module, eps[0], rounds=rounds)


@lru_cache(maxsize=64)
def _rounding(
    kind: Any, _: Any, attributes: tuple[tuple[str, Any], ...], width: int, dtype: torch.dtype
) -> bool | None:
    """Return `rounds` of the kernel that has the bits of such modules; None if they compute something else.

    A model has many norms of one class, which differ in their weights only. So one module with a random weight is tried
    for all of them.

    Args:
        kind, attributes: class and attributes of the modules.
        _: the forward of the class, so that a replaced one is tried anew.
    """
    module = object.__new__(kind)
    nn.Module.__init__(module)
    weight, rows = _trial_rows(width, dtype)
    vars(module).update(attributes, training=False)
    module._parameters["weight"] = nn.Parameter(weight, requires_grad=False)
    eps = next(value for _, value in attributes if type(value) is float)
    with torch.inference_mode():
        expected = module(rows)
        for rounds in (True, False):
            if expected.dtype == dtype and expected.equal(rms_norm(rows, Norm(weight, eps, dtype, rounds=rounds))):
                return rounds
    return None


def _has_form(module: nn.Module) -> bool:
    """Return whether a module has the parts of an RMSNorm: one vector as its weight, and inputs alone as argument."""
    weight = module._parameters.get("weight")
    has_more = len(module._parameters) > 1 or module._modules or module._buffers
    if weight is None or has_more or isinstance(module, KernelRMSNorm):
        return False
    code = getattr(type(module).forward, "__code__", None)
    is_long_vector = weight.ndim == 1 and weight.shape[0] >= SHORTEST_ROW
    return is_long_vector and weight.dtype in INPUT_TYPES and _has_one_argument(code)


def _has_one_argument(code: Any) -> bool:
    """Return whether a method takes one argument besides `self`. 0xC: the flags of `*args` and `**kwargs`."""
    return code is not None and code.co_argcount == 2 and not code.co_kwonlyargcount and not code.co_flags & 0xC


def _trial_rows(width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a random weight [width], and rows [4, width]: usual, small and large numbers, and zeros."""
    generator = torch.Generator("cpu").manual_seed(0)
    weight, *rows = torch.randn(5, width, generator=generator, dtype=torch.float32, device="cpu")
    sizes = torch.tensor([[1.0], [1e-4], [1e4], [0.0]], dtype=torch.float32, device="cpu")
    return weight.to(dtype), (torch.stack(rows) * sizes).to(dtype)

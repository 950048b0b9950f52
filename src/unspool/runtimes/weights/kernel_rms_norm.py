"""RMSNorm modules that make one call of our kernel each, with the bits of their operators.

Each family of models has another class, so a module is recognized by its results.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import nn

from unspool.kernels.library import INPUT_TYPES
from unspool.kernels.rows import SHORTEST_ROW, Norm, rms_norm, sum_lanes
from unspool.runtimes.weights.kernel_module import KernelModule


class KernelRMSNorm(KernelModule):
    """An RMSNorm on our kernel.

    Args:
        module: the module to replace, which runs for inputs of another dtype than its weight.
        eps, rounds: see `Norm`.
    """

    def __init__(self, module: nn.Module, eps: float, *, rounds: bool) -> None:
        super().__init__()
        self._parameters.update(module._parameters)
        # In a tuple, so that it is not a module of the tree.
        self._plain, self._eps, self._rounds = (module,), eps, rounds
        self.repack()

    def repack(self) -> None:
        weight: Any = self.weight
        self._norm = Norm(weight, self._eps, weight.dtype, rounds=self._rounds)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.dtype != self._norm.dtype or x.stride(-1) != 1:
            found: torch.Tensor = self._plain[0](x)
            return found
        return rms_norm(x, self._norm)


def kernel_rms_norm(module: nn.Module) -> KernelRMSNorm | None:
    """Return a norm with the bits of a plain module on the CPU; None if the module is not an RMSNorm."""
    eps = [each for each in vars(module).values() if type(each) is float]
    if len(eps) != 1 or not _has_form(module) or sum_lanes() is None:
        return None
    weight: Any = module.weight
    rows = _trial_rows(*weight.shape, weight.dtype)
    with torch.inference_mode():
        expected = module(rows)
        norms = (KernelRMSNorm(module, eps[0], rounds=rounds) for rounds in (True, False))
        return next((norm for norm in norms if expected.dtype == rows.dtype and expected.equal(norm(rows))), None)


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


@lru_cache(maxsize=8)
def _trial_rows(width: int, dtype: torch.dtype) -> torch.Tensor:
    """Return rows of usual, small and large numbers, and a row of zeros. --> [4, width]"""
    generator = torch.Generator("cpu").manual_seed(0)
    rows = torch.randn(4, width, generator=generator, dtype=torch.float32, device="cpu")
    return (rows * torch.tensor([[1.0], [1e-4], [1e4], [0.0]], dtype=torch.float32, device="cpu")).to(dtype)

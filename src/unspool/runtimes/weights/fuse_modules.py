"""Operator fusion: norms and activations as modules that make one call of our kernels, or of PyTorch without them.

On a CPU each operator costs microseconds, which count beside the few milliseconds of a small model's decode step.
Results are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import activations

from unspool.kernels.gate import Activation, gate
from unspool.kernels.layer_norm import LayerNorm, layer_norm
from unspool.kernels.library import INPUT_TYPES, kernels
from unspool.runtimes.module_tree import modules_in, parameters_of
from unspool.runtimes.weights.autotune import choice
from unspool.runtimes.weights.kernel_module import KernelModule
from unspool.runtimes.weights.kernel_rms_norm import kernel_rms_norm
from unspool.runtimes.weights.packed_linear import is_plain
from unspool.runtimes.weights.tanh_gelu import TanhGELU

_MANY_OPERATORS = (activations.NewGELUActivation, activations.FastGELUActivation, activations.AccurateGELUActivation)
_ACTIVATIONS: dict[type[nn.Module], Activation] = {
    nn.ReLU: "relu",
    nn.SiLU: "silu",
    activations.SiLUActivation: "silu",
    activations.GELUActivation: "gelu",
    activations.GELUTanh: "gelu_tanh",
    **dict.fromkeys(_MANY_OPERATORS, "gelu_tanh"),
}


class KernelLayerNorm(KernelModule, nn.LayerNorm):
    """A LayerNorm on our kernel, with the parameters of the module that it replaces."""

    _norm: LayerNorm

    def __init__(self, module: nn.LayerNorm) -> None:
        nn.Module.__init__(self)
        self.__dict__ |= {name: value for name, value in module.__dict__.items() if name not in self.__dict__}
        self._parameters.update(module._parameters)
        self.training = module.training
        self.repack()

    def repack(self) -> None:
        weight, bias = self._parameters["weight"], self._parameters["bias"]
        assert weight is not None, "`_fits` has checked the weight"
        # An assignment by `nn.Module` takes a microsecond, and a model has many norms.
        vars(self)["_norm"] = LayerNorm(weight, bias, len(weight), self.eps, weight.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return layer_norm(x, self._norm) if x.dtype == self._norm.dtype else super().forward(x)


class KernelActivation(nn.Module):
    """An activation on our kernel."""

    def __init__(self, module: nn.Module, activation: Activation) -> None:
        super().__init__()
        # In a tuple, so that it is not registered, and replaced in turn.
        self._plain, self._activation = (module,), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = gate(x, self._activation) if x.dtype in INPUT_TYPES else self._plain[0](x)
        return found


def fuse_modules(model: nn.Module) -> int:
    """Replace norms and activations of `model`, in place, by modules on our kernels, and remove dropout.

    Modules with hooks, with a replaced `forward` or of another dtype stay. Without kernels, and with
    `UNSPOOL_LINEAR=plain`, activations of many operators become `TanhGELU`, and other modules stay. If a
    parameter is not on the CPU, all stay.

    Returns:
        The number of replaced modules.

    Raises:
        OptionError: if the value of `UNSPOOL_LINEAR` is not allowed.
    """
    every = modules_in(model)
    is_on_cpu = all(each.device.type == "cpu" for each in parameters_of(every))
    if not is_on_cpu:
        return 0
    replacement = _replacement if kernels() is not None and choice() != "plain" else _few_operators
    sites = [
        (parent, name, child, made)
        for parent in every
        for name, child in parent._modules.items()
        if child is not None and is_plain(child) and (made := replacement(child)) is not None
    ]
    for parent, name, child, made in sites:
        parent._modules[name] = made(child)
    return len(sites)


def _replacement(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    if type(module) is nn.Dropout:
        return lambda _: nn.Identity()  # models here are in evaluation mode
    if type(module) is nn.LayerNorm:
        return KernelLayerNorm if _fits(module) else None
    activation: Activation | None = _ACTIVATIONS.get(type(module))
    if type(module) is nn.GELU:
        activation = "gelu" if module.approximate == "none" else "gelu_tanh"
    if activation is not None:
        return lambda child: KernelActivation(child, activation)
    norm = kernel_rms_norm(module)
    return None if norm is None else lambda _: norm


def _few_operators(module: nn.Module) -> Callable[[Any], nn.Module] | None:
    return (lambda _: TanhGELU()) if type(module) in _MANY_OPERATORS else None


def _fits(norm: nn.LayerNorm) -> bool:
    parameters = list(norm._parameters.values())
    weight = parameters[0]
    return (
        weight is not None
        and len(norm.normalized_shape) == 1
        and weight.dtype in INPUT_TYPES
        and all(each is None or each.dtype == weight.dtype for each in parameters)
    )

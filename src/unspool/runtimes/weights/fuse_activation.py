"""Fuse activations into packed linear layers, and replace multi-op activations by one op.

On a CPU each op costs microseconds, which count beside the few milliseconds of a small model's decode step. A packed
layer applies the activation behind it at no cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import activations

from unspool.runtimes.weights.packed_linear import NO_ACTIVATION, Activation, PackedLinear, is_plain

_TANH_GELU = Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh")
_GELU = Activation(F.gelu, "gelu", "none")
_SILU = Activation(F.silu, "swish")
_RELU = Activation(F.relu, "relu")

_MULTI_OP = (activations.NewGELUActivation, activations.FastGELUActivation, activations.AccurateGELUActivation)
"""Classes that compute the tanh approximation of GELU in many ops."""

_KINDS: dict[type[nn.Module], Activation] = {
    **dict.fromkeys(_MULTI_OP, _TANH_GELU),
    activations.GELUTanh: _TANH_GELU,
    activations.GELUActivation: _GELU,
    activations.SiLUActivation: _SILU,
    nn.SiLU: _SILU,
    nn.ReLU: _RELU,
}
"""The activations that oneDNN can apply, by class. `nn.GELU` is missing here: its options decide."""

_PROOF_ROWS = 3


class FusedActivation(nn.Identity):
    """Takes the place of an activation that a packed layer applies.

    Args:
        activation: the replaced module; it computes if the layer applies no activation (see `parted`).
        layer: the packed layer.
    """

    def __init__(self, activation: nn.Module, layer: PackedLinear) -> None:
        super().__init__()
        self.activation = activation
        self._layer = (layer,)  # in a tuple: the layer must have only one place in the module tree

    @property
    def layer(self) -> PackedLinear:
        """The layer that applies the activation."""
        return self._layer[0]

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.activation(inputs) if self.layer.activation is NO_ACTIVATION else inputs
        return result


@contextmanager
def parted(model: nn.Module) -> Iterator[None]:
    """Let each fused activation of `model` compute in its own module, so that hooks see its input and output."""
    layers = [module.layer for module in model.modules() if isinstance(module, FusedActivation)]
    fused = [layer.activation for layer in layers]
    for layer in layers:
        layer.activation = NO_ACTIVATION
    try:
        yield
    finally:
        for layer, activation in zip(layers, fused, strict=True):
            layer.activation = activation


def replace_activations(model: nn.Module) -> int:
    """Replace multi-op activations of `model`, in place, by one op with equal results up to rounding.

    Returns:
        The number of replaced modules.
    """
    sites = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if type(child) in _MULTI_OP and child is not None and is_plain(child)
    ]
    for parent, name in sites:
        setattr(parent, name, nn.GELU("tanh"))
    return len(sites)


def fuse_activations(model: nn.Module) -> int:
    """Let packed layers of `model` apply the activation that follows them.

    Whether an activation follows a layer is proved by running their parent module: fused, it must give the same result
    up to rounding. One proof holds for all parents of the same class with the same names.

    Returns:
        The number of fused activations.
    """
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    proved: dict[Any, str | None] = {}
    count = 0
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if (kind := _kind_of(child)) is None:
                continue
            layers = [key for key, child in parent._modules.items() if _is_free(child) and uses[id(child)] == 1]
            key = (type(parent), name, kind.name, kind.algorithm, tuple(layers))
            if key not in proved:
                proved[key] = next((layer for layer in layers if _is_proved(parent, name, layer, kind)), None)
            if (layer := proved[key]) is not None:
                _fuse(parent, name, layer, kind)
                count += 1
    return count


def _is_free(child: nn.Module | None) -> bool:
    return isinstance(child, PackedLinear) and is_plain(child) and child.activation is NO_ACTIVATION


def _kind_of(child: nn.Module | None) -> Activation | None:
    """Return the activation that a module computes; None if its class is not known or it carries hooks."""
    if child is None or not is_plain(child):
        return None
    if type(child) is nn.GELU:
        return _TANH_GELU if child.approximate == "tanh" else _GELU
    return _KINDS.get(type(child))


def _is_proved(parent: nn.Module, name: str, layer: str, kind: Activation) -> bool:
    """Return whether `parent` gives the same result if its child `layer` applies its child `name`."""
    linear, before = parent._modules[layer], parent._modules[name]
    assert isinstance(linear, PackedLinear)
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (1, _PROOF_ROWS, linear.in_features)
    inputs = torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu").to(linear.dtype)
    try:
        apart = parent(inputs)
        _fuse(parent, name, layer, kind)
        fused = parent(inputs)
    except Exception:  # the parent needs other inputs
        return False
    finally:
        linear.activation = NO_ACTIVATION
        parent._modules[name] = before
    return _agree(apart, fused)


def _agree(apart: Any, fused: Any) -> bool:
    if not isinstance(apart, torch.Tensor) or not isinstance(fused, torch.Tensor) or apart.shape != fused.shape:
        return False
    tolerance = 16 * torch.finfo(apart.dtype).eps * float(apart.abs().max())
    return bool(apart.isfinite().all()) and torch.allclose(fused, apart, atol=tolerance, rtol=0)


def _fuse(parent: nn.Module, name: str, layer: str, kind: Activation) -> None:
    linear, activation = parent._modules[layer], parent._modules[name]
    assert isinstance(linear, PackedLinear) and activation is not None
    linear.activation = kind
    parent._modules[name] = FusedActivation(activation, linear)

"""Modules of transformers that spell out in many small calls what PyTorch has one call for, or no call of its own.

On a CPU every call costs microseconds, which count beside the few milliseconds of a small model's step. An activation
behind a packed layer costs nothing where that layer applies it.
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
from transformers.activations import FastGELUActivation, NewGELUActivation

from unspool.runtimes.weights.packed_linear import NO_ACTIVATION, Activation, PackedLinear, is_plain

_SPELLED_OUT = (NewGELUActivation, FastGELUActivation)
_ACTIVATIONS = (
    Activation(partial(F.gelu, approximate="tanh"), "gelu", "tanh"),
    Activation(F.gelu, "gelu", "none"),
    Activation(F.silu, "swish"),
    Activation(F.relu, "relu"),
)
_PROBE_ROWS = 3


class Joined(nn.Identity):
    """Stands where an activation was that a packed layer now applies.

    Args:
        activation: what was there.
        layer: the packed layer.
    """

    def __init__(self, activation: nn.Module, layer: PackedLinear) -> None:
        super().__init__()
        self.activation = activation
        self._joined = ((layer, layer.activation),)  # in a tuple: the layer has a place in the tree already

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        layer, _ = self._joined[0]
        found: torch.Tensor = self.activation(inputs) if layer.activation is NO_ACTIVATION else inputs
        return found

    def part(self) -> None:
        """Let the layer and the activation compute apart, as their classes say."""
        self._joined[0][0].activation = NO_ACTIVATION

    def join(self) -> None:
        """Let the layer apply the activation again."""
        layer, activation = self._joined[0]
        layer.activation = activation


@contextmanager
def parted(model: nn.Module) -> Iterator[None]:
    """Let every activation of the tree compute by itself while the context lasts: hooks see its input and output."""
    joined = [module for module in model.modules() if isinstance(module, Joined)]
    for module in joined:
        module.part()
    try:
        yield
    finally:
        for module in joined:
            module.join()


class TanhGELU(nn.Module):
    """GELU by its tanh approximation, in one call."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.gelu(inputs, approximate="tanh")


def replace_activations(model: nn.Module) -> int:
    """Replace activations of `model`, in place, by ones that give the same up to rounding; returns how many."""
    sites = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if type(child) in _SPELLED_OUT and child is not None and is_plain(child)
    ]
    for parent, name in sites:
        setattr(parent, name, TanhGELU())
    return len(sites)


def fuse_activations(model: nn.Module) -> int:
    """Let packed layers of `model` apply the activation that stands behind them; returns how many.

    Which layer that is, a trial shows: joined, the module that holds both must give the same up to rounding. One trial
    speaks for all modules of the same class whose parts have the same names.
    """
    uses = Counter(id(child) for parent in model.modules() for child in parent._modules.values())
    found: dict[Any, str | None] = {}
    count = 0
    for parent in model.modules():
        for name, activation in _activations_of(parent):
            layers = [key for key, child in parent._modules.items() if _is_free(child) and uses[id(child)] == 1]
            key = (type(parent), name, activation.name, activation.algorithm, tuple(layers))
            if key not in found:
                found[key] = next((layer for layer in layers if _can_join(parent, name, layer, activation)), None)
            if (layer := found[key]) is not None:
                _join(parent, name, layer, activation)
                count += 1
    return count


def _is_free(child: nn.Module | None) -> bool:
    return isinstance(child, PackedLinear) and is_plain(child) and child.activation is NO_ACTIVATION


def _activations_of(parent: nn.Module) -> Iterator[tuple[str, Activation]]:
    """Yield each part of a module that does nothing but what oneDNN can do, by its name."""
    for name, child in list(parent._modules.items()):
        if child is None or not is_plain(child) or next(child.parameters(), None) is not None or child._modules:
            continue
        if activation := _kind_of(child):
            yield name, activation


def _kind_of(child: nn.Module) -> Activation | None:
    probe = torch.linspace(-4, 4, 33, dtype=torch.float32, device="cpu")
    try:
        result = child(probe)
    except Exception:
        return None
    if not isinstance(result, torch.Tensor) or result.shape != probe.shape:
        return None
    alike = (kind for kind in _ACTIVATIONS if torch.allclose(result, kind.function(probe), atol=1e-6, rtol=1e-6))
    return next(alike, None)


def _can_join(parent: nn.Module, name: str, layer: str, activation: Activation) -> bool:
    """Return whether a module gives the same when its part `layer` applies its part `name`; changes nothing."""
    linear, before = parent._modules[layer], parent._modules[name]
    assert isinstance(linear, PackedLinear)
    generator = torch.Generator("cpu").manual_seed(0)
    inputs = torch.randn(1, _PROBE_ROWS, linear.in_features, generator=generator, dtype=torch.float32, device="cpu").to(
        linear.dtype
    )
    try:
        apart = parent(inputs)
        _join(parent, name, layer, activation)
        together = parent(inputs)
    except Exception:
        return False
    finally:
        linear.activation = NO_ACTIVATION
        parent._modules[name] = before
    return _agree(apart, together)


def _agree(apart: Any, together: Any) -> bool:
    if not isinstance(apart, torch.Tensor) or not isinstance(together, torch.Tensor) or apart.shape != together.shape:
        return False
    distance = 16 * torch.finfo(apart.dtype).eps * float(apart.abs().max())
    return bool(apart.isfinite().all()) and torch.allclose(together, apart, atol=distance, rtol=0)


def _join(parent: nn.Module, name: str, layer: str, activation: Activation) -> None:
    linear = parent._modules[layer]
    assert isinstance(linear, PackedLinear)
    before = parent._modules[name]
    assert before is not None
    linear.activation = activation
    parent._modules[name] = Joined(before, linear)

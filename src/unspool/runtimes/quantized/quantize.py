"""Quantize linear layers: replace them in a model, and choose the number of bits per layer.

No calibration is needed: each weight is rounded by itself, and inputs of layers are not rounded.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.errors import ModelError
from unspool.kernels.packed import INT4_GROUP
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.quantized.linear import QuantizedLinear
from unspool.runtimes.quantized.rounding import Bits
from unspool.runtimes.weights.packed_linear import is_plain
from unspool.runtimes.weights.release_memory import trim_heap


def quantize_linears(model: Any, bits: Bits) -> int:
    """Replace the linear layers of a model, in place, by quantized layers; plain weights are freed one by one.

    With "int4", the output head and layers with a width that is not a multiple of 32 get 8 bits. An embedding that
    shares its matrix with a layer keeps it.

    Args:
        model: a transformers model on the CPU that belongs to Unspool.
        bits: "int8" or "int4".

    Returns:
        How many layers were replaced.

    Raises:
        ModelError: if a weight holds NaN or infinite numbers, which rounding would hide; the message names it.
    """
    _finish(model.eval())
    head = id(model.get_output_embeddings())
    pages = HugePages()
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for parent, name in _sites(model):
        places.setdefault(id(parent._modules[name]), []).append((parent, name))
    for key, found in places.items():
        # Only the model holds a layer, so that each plain weight is freed before the next one is quantized.
        parent, name = found[0]
        chosen = bits if key != head and _width(parent._modules[name]) % INT4_GROUP == 0 else "int8"
        _check_finite(model, parent, name)
        quantized = QuantizedLinear(parent._modules[name], chosen, pages)  # type: ignore[arg-type]
        for parent, name in found:
            setattr(parent, name, quantized)
    trim_heap()
    return len(places)


def _finish(model: nn.Module) -> None:
    """Rescale weights now if the model would do so in its first forward."""
    for module in model.modules():
        rescale: Any = getattr(module, "_rescale_layers", None)
        if rescale is not None:
            rescale()


def _sites(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Yield (parent, name) of each layer to quantize."""
    for parent in model.modules():
        # MultiheadAttention reads the weights of its layers and never calls them.
        if not isinstance(parent, nn.MultiheadAttention):
            yield from ((parent, name) for name, child in parent._modules.items() if _fits(child))


def _weight_at(parent: nn.Module, name: str) -> torch.Tensor:
    layer: Any = parent._modules[name]
    weight: torch.Tensor = layer.weight
    return weight


def _check_finite(model: nn.Module, parent: nn.Module, name: str) -> None:
    weight = _weight_at(parent, name).detach()
    # The bounds are NaN if a weight is, and need no memory, unlike `isfinite`.
    if not all(bound.isfinite() for bound in weight.aminmax()):
        prefix = next(path for path, module in model.named_modules() if module is parent)
        path = f"{prefix}.{name}.weight".removeprefix(".")
        raise ModelError(
            f"`{path}` holds NaN or infinite numbers and cannot be quantized; repair it or leave out `quantize`"
        )


def _fits(layer: Any) -> bool:
    if not isinstance(layer, (nn.Linear, Conv1D)) or not is_plain(layer):
        return False
    weight = layer.weight
    is_ordinary = type(weight) in (nn.Parameter, torch.Tensor) and type(weight.data) is torch.Tensor
    is_held = is_ordinary and weight.device.type == "cpu" and weight.is_floating_point() and weight.numel() > 0
    return is_held and _multiplies(layer)


def _width(layer: Any) -> int:
    width: int = layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0]
    return width


def _multiplies(layer: nn.Linear | Conv1D) -> bool:
    """Return whether the layer only multiplies and adds a bias: some subclasses do more, or return more."""
    if type(layer) in (nn.Linear, Conv1D):
        return True
    weight = layer.weight.detach()
    rows = torch.ones(2, _width(layer), dtype=weight.dtype, device=weight.device)
    rows[1, ::2] = -1
    try:
        with torch.no_grad():
            found = layer(rows)
            expected = F.linear(rows, weight if isinstance(layer, nn.Linear) else weight.T, layer.bias)
    except (RuntimeError, TypeError, ValueError, IndexError):
        return False
    return isinstance(found, torch.Tensor) and found.shape == expected.shape and torch.allclose(found, expected, 1e-2)

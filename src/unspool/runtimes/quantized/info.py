"""Quantized layers of a model: which linear layers are quantized, and its effect on batching and copying.

Owns the 8-bit state that bitsandbytes keeps outside of parameters. Does not know how a quantized layer computes, or
how a model is loaded (`unspool.loading.quantization`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.runtimes.module_tree import modules_in
from unspool.runtimes.quantized.linear import QuantizedLinear

_MUCH: Final = 0.1
"""The share of weights outside of linear layers that the report mentions."""


def quantized_linears(model: nn.Module) -> dict[int, str]:
    """Return the linear layers without a plain floating-point weight: id of the module --> kind, in words."""
    return {id(module): kind for module in modules_in(model) if (kind := _kind(module))}


def kinds_in_words(model: nn.Module, quantized: Mapping[int, str]) -> list[str]:
    """Return the number of quantized linear layers per kind, in words; an empty list for none.

    If `quantize` left a large share of the weights plain, the last entry tells the share.

    Args:
        model: the model.
        quantized: see `quantized_linears`.
    """
    kinds = Counter(quantized.values())
    if not kinds:
        return []
    words = [f"{count} quantized as {kind}" for kind, count in sorted(kinds.items())]
    if (share := _plain_share(model)) > _MUCH:
        words.append(f"{share:.0%} of the weights are in no linear layer and stay as they are")
    return words


def _plain_share(model: nn.Module) -> float:
    """Return the share of matrix weights outside of linear layers and embeddings; 0 without layers of `quantize`."""
    ours = sum(module.shape.numel() for module in modules_in(model) if isinstance(module, QuantizedLinear))
    if not ours:
        return 0.0
    others = [module for module in modules_in(model) if not isinstance(module, (nn.Embedding, nn.Linear, Conv1D))]
    plain = sum(each.numel() for module in others for each in module.parameters(recurse=False) if each.ndim > 1)
    return plain / (plain + ours)


def shares_rounding(model: nn.Module) -> bool:
    """Return whether the rounding of a row can depend on the other rows of a pass.

    Other libraries choose kernels by the number of rows, and some round all rows of a pass on one scale.
    """
    ours = {id(module) for module in modules_in(model) if isinstance(module, QuantizedLinear)}
    return bool(quantized_linears(model).keys() - ours)


def _kind(module: nn.Module) -> str:
    if isinstance(module, QuantizedLinear):
        return module.bits
    if not isinstance(module, nn.Linear):
        return ""
    if type(module) is not nn.Linear and not module.weight.is_floating_point():
        state = getattr(module, "state", None)
        shares = getattr(state, "threshold", 0.0) > 0.0
        return (
            f"{type(module).__name__}, all rows of a pass with the same outliers" if shares else type(module).__name__
        )
    weight = module.weight.data
    return "" if type(weight) is torch.Tensor else type(weight).__name__


def taken_up(modules: Iterable[nn.Module]) -> Iterator[torch.Tensor]:
    """Initialize the state of 8-bit layers of bitsandbytes, as their first forward does; yield the tensors.

    Before that, a weight gives its data to the first layer that asks. A copied layer over the same parameter would
    leave none for the original.
    """
    for module in modules:
        kind: Any = type(module)
        if not hasattr(kind, "init_8bit_state"):
            continue
        each: Any = module
        state = each.state
        if getattr(each.weight, "CB", None) is not None:
            each.init_8bit_state()
        yield from (held for held in (state.CB, state.SCB) if held is not None)

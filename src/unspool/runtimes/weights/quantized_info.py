"""What sets a model with quantized layers apart when it is run: how its rows and its layers can be shared.

Owns: which linear layers are quantized, and what 8-bit layers of bitsandbytes keep outside of their parameters.
Does not know: how a quantized layer computes, or how a model is loaded (`unspool.loading.quantization`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.runtimes.weights.quantized_linear import QuantizedLinear

# Of all weights; less is not worth a word.
_MUCH: Final = 0.1


def quantized_linears(model: nn.Module) -> dict[int, str]:
    """Return the linear layers that hold no plain floating-point weight: id of the module --> what it is, in words."""
    return {id(module): kind for module in model.modules() if (kind := _kind(module))}


def kinds_in_words(model: nn.Module) -> list[str]:
    """Return how many linear layers are quantized, and how, in words; nothing for none.

    With them, where it is much, what of our own quantization's share has stayed plain.
    """
    kinds = Counter(quantized_linears(model).values())
    words = [f"{count} quantized as {kind}" for kind, count in sorted(kinds.items())]
    if (share := _plain_share(model)) > _MUCH:
        words.append(f"{share:.0%} of the weights are in no linear layer and stay as they are")
    return words


def _plain_share(model: nn.Module) -> float:
    """Return how large a share of the numbers in matrices is in no layer and no embedding, where layers are ours."""
    ours = sum(module.shape.numel() for module in model.modules() if isinstance(module, QuantizedLinear))
    others = [module for module in model.modules() if not isinstance(module, (nn.Embedding, nn.Linear, Conv1D))]
    plain = sum(each.numel() for module in others for each in module.parameters(recurse=False) if each.ndim > 1)
    return plain / (plain + ours) if ours else 0.0


def shares_rounding(model: nn.Module) -> bool:
    """Return whether a row may be rounded otherwise in other company.

    Other libraries' kernels choose by the number of rows, and some round all rows of a pass on one scale.
    """
    ours = {id(module) for module in model.modules() if isinstance(module, QuantizedLinear)}
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


def taken_up(model: nn.Module) -> Iterator[torch.Tensor]:
    """Have 8-bit layers of bitsandbytes take up their weights, as their own first forward does; yield those.

    Until then a weight hands over what it holds to the first layer that asks: a copied layer over the same parameter
    would leave none for the layer it was copied from.
    """
    for module in model.modules():
        state: Any = getattr(module, "state", None)
        take_up = getattr(module, "init_8bit_state", None)
        if take_up is None:
            continue
        if getattr(module.weight, "CB", None) is not None:
            take_up()
        yield from (held for held in (state.CB, state.SCB) if held is not None)

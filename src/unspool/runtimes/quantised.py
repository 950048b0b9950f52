"""What sets a model with quantised layers apart when it is run: how exact it is, and how it can be shared.

Owns: which linear layers are quantised, and what 8-bit layers of bitsandbytes keep outside of their parameters.
Does not know: how a quantised layer computes, or how a model is loaded (`unspool.quantisation`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import nn

_TOLERANCE: Final = {torch.float32: 1e-3, torch.float64: 1e-3}
_ROUNDED: Final = 0.2


def quantised_linears(model: nn.Module) -> dict[int, str]:
    """Return the linear layers that hold no plain floating-point weight: id of the module --> what it is, in words."""
    return {id(module): kind for module in model.modules() if (kind := _kind(module))}


def _kind(module: nn.Module) -> str:
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


def tolerance(model: nn.Module) -> float:
    """Return how far a trial may be from the model's own forward, relative to its largest logit.

    Half precision and quantised layers round what they read, so that an error in the last digit grows.
    """
    if quantised_linears(model):
        return _ROUNDED
    return _TOLERANCE.get(next(model.parameters()).dtype, _ROUNDED)


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

"""Modules of transformers that spell out in many small calls what PyTorch has one call for.

On a CPU every call costs microseconds, which count beside the few milliseconds of a small model's step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import FastGELUActivation, NewGELUActivation

from unspool.runtimes.linear import is_plain

_SPELLED_OUT = (NewGELUActivation, FastGELUActivation)


class TanhGELU(nn.Module):
    """GELU by its tanh approximation, in one call."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return F.gelu(inputs, approximate="tanh")


def lighten(model: nn.Module) -> int:
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

"""Operator fusion: replace activations of many operators by one operator.

On a CPU each operator costs microseconds, which count beside the few milliseconds of a small model's decode step.
"""

from __future__ import annotations

from torch import nn
from transformers import activations

from unspool.runtimes.module_tree import modules_in
from unspool.runtimes.weights.packed_linear import is_plain

_MANY_OPERATORS = (activations.NewGELUActivation, activations.FastGELUActivation, activations.AccurateGELUActivation)
"""Classes that compute the tanh approximation of GELU in many operators."""


def replace_activations(model: nn.Module) -> int:
    """Replace activations of many operators, in place, by one with equal results up to rounding.

    Returns:
        The number of replaced modules.
    """
    sites = [
        (parent, name)
        for parent in modules_in(model)
        for name, child in parent._modules.items()
        if type(child) in _MANY_OPERATORS and child is not None and is_plain(child)
    ]
    for parent, name in sites:
        setattr(parent, name, nn.GELU("tanh"))
    return len(sites)

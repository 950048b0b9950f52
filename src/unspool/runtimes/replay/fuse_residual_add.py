"""Sums of a recorded pass that the packed layer in front of them can compute: a call less, and the same bits.

In float32 oneDNN adds to a product what a call of its own would: it has not rounded it before. Knows steps; no passes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from unspool.runtimes.replay.tracer import Constant, Ref, Step, tensors_in

_ADDS = (torch.Tensor.__add__, torch.Tensor.add, torch.add)


def fuse_residual_adds(steps: Sequence[Step], result: int) -> list[Step]:
    """Return the steps with every sum of a packed layer's results and something else computed by the layer.

    result: number of the tensor that the pass returns.
    """
    uses = Counter(ref.number for step in steps for ref in tensors_in((step.args, step.kwargs)) if isinstance(ref, Ref))
    uses[result] += 1
    layers: dict[int, int] = {}
    found: list[Step | None] = []
    for step in steps:
        place = _summand(step, layers, uses)
        if place is None:
            found.append(step)
        else:
            first, second = step.args
            other = second if first == Ref(place) else first
            layer = found[layers[place]]
            assert layer is not None
            found[layers[place]] = None
            inputs, weight, bias = layer.args[:3]
            fused = torch.ops.mkldnn._linear_pointwise.binary
            found.append(Step(fused, (inputs, other, weight, bias, "add"), {}, step.outputs, is_tuple=False))
        if _is_layer(step) and (number := step.outputs[0]) is not None:
            layers[number] = len(found) - 1
    return [step for step in found if step is not None]


def _summand(step: Step, layers: dict[int, int], uses: Counter[int]) -> int | None:
    """Return the number of the packed layer's results that a step adds to something, and nobody else reads."""
    if step.func not in _ADDS or step.kwargs or len(step.args) != 2 or not _are_tensors(step.args):
        return None
    # The later of two layers takes the sum, so that what it adds is there already.
    numbers = [arg.number for arg in step.args if isinstance(arg, Ref) and arg.number in layers]
    alone = [number for number in numbers if uses[number] == 1]
    return max(alone, default=None)


def _are_tensors(args: Sequence[Any]) -> bool:
    return all(isinstance(arg, Ref | Constant) for arg in args)


def _is_layer(step: Step) -> bool:
    """Return whether a step is a packed layer in float32 that does nothing else."""
    if step.func is not torch.ops.mkldnn._linear_pointwise or len(step.args) != 6 or step.args[3] != "none":
        return False
    weight = step.args[1]
    return isinstance(weight, Constant) and weight.tensor.dtype == torch.float32

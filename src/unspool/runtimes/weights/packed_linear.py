"""Packed linear layers: weights in the memory layout of oneDNN.

Owns the packed weights and the choice of layers to pack. Does not know attention, caches or sequences.

A decode step on a CPU reads every weight from memory for a few rows. oneDNN reads a packed weight two to four times
faster than `torch.nn.functional.linear` reads a plain one, with equal results up to rounding. autotune.py measures the
fastest form per shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.machine.memory import available_memory
from unspool.runtimes.quantized.info import kinds_in_words, quantized_linears
from unspool.runtimes.weights.autotune import VARIABLE, best_plan, choice, is_small
from unspool.runtimes.weights.invariant_rows import INVARIANT, invariant_rows
from unspool.runtimes.weights.lazy_weight import LazyWeight
from unspool.runtimes.weights.release_memory import trim_heap
from unspool.tuning import PACK_ROWS

Pack: TypeAlias = bool | Literal["auto"]

_PACKABLE = (torch.float32, torch.bfloat16)


class PackReport(NamedTuple):
    """How many linear layers were packed, of how many, and why the others were not ("" if all were).

    least_rows: passes with fewer rows are padded to these; 1 for no padding.
    """

    packed: int
    total: int
    reason: str = ""
    least_rows: int = 1

    def __str__(self) -> str:
        text = f"{self.packed} of {self.total} linear layers packed"
        if self.least_rows > 1:
            text += f" for {self.least_rows} rows or more"
        return f"{text} ({self.reason})" if self.reason else text


class Activation(NamedTuple):
    """An activation that oneDNN can apply to the output of a layer. name, algorithm: oneDNN's names for it."""

    function: Callable[[torch.Tensor], torch.Tensor]
    name: str
    algorithm: str = ""


NO_ACTIVATION = Activation(lambda states: states, "none")


class PackedLinear(nn.Module):
    """`nn.Linear` or `Conv1D` with a packed copy of its weight, and optionally a fused activation.

    Copy, pickle and state_dict cannot read the packed tensor. So it is a plain attribute, and copying or pickling the
    module raises `TypeError`. A layer with the plain form uses its plain weight, except inside `invariant_rows`.

    Args:
        layer: an `nn.Linear` or a `Conv1D` on the CPU, float32 or bfloat16.
        keep: True if the plain weight stays in memory; False unpacks it whenever the values of `weight` are read.

    Attributes:
        activation: applied to the output; see fuse_activation.py.
    """

    activation = NO_ACTIVATION

    def __init__(self, layer: nn.Linear | Conv1D, *, keep: bool) -> None:
        super().__init__()
        self._transposed = isinstance(layer, Conv1D)
        weight = layer.weight
        self.in_features, self.out_features = weight.shape if self._transposed else weight.shape[::-1]
        self.dtype, self.shape, self.bias = weight.dtype, weight.shape, layer.bias
        self.form = best_plan(self.in_features, self.out_features, weight.dtype)
        # In tuples, so that a parameter of the user's model is not registered here, and access needs no search.
        self._source: tuple[torch.Tensor, ...] = (weight,) if keep or not self.form.packed else ()
        self._tensors = self._pack(weight)

    def _pack(self, weight: torch.Tensor) -> tuple[Any, torch.Tensor | None, torch.Tensor | None]:
        """Return the packed weight, the plain weight if the layer uses it, and the bias."""
        plain = weight.detach().T if self._transposed else weight.detach()
        packed = torch.ops.mkldnn._reorder_linear_weight(plain.contiguous(), PACK_ROWS)
        return packed, None if self.form.packed else plain, self.bias

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, in the layout of the layer that was packed, bit for bit. Values are unpacked when read."""
        return self._source[0] if self._source else LazyWeight(self.shape, self.dtype, self.unpacked)

    def unpacked(self) -> torch.Tensor:
        """Return the plain weight with its values."""
        if self._source:
            return self._source[0]
        plain: torch.Tensor = self._tensors[0].to_dense()
        return plain.T if self._transposed else plain

    def repack(self) -> None:
        """Pack the kept weight again after its values have changed."""
        assert self._source, "only a layer that keeps its plain weight can be packed again"
        self._tensors = self._pack(self._source[0])

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        _, plain, bias = self._tensors
        if plain is not None and not INVARIANT.get():
            return self.activation.function(F.linear(inputs, plain, bias))
        count, least = inputs.shape[:-1].numel(), self.form.least_rows
        if count >= least:
            return self._product(inputs)
        rows = F.pad(inputs.reshape(-1, self.in_features), (0, 0, 0, least - count))
        return self._product(rows)[:count].view(*inputs.shape[:-1], self.out_features)

    def _product(self, inputs: torch.Tensor) -> torch.Tensor:
        packed, _, bias = self._tensors
        _, name, algorithm = self.activation
        result: torch.Tensor = torch.ops.mkldnn._linear_pointwise(inputs, packed, bias, name, [], algorithm)
        return result

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
        return sizes if self.activation is NO_ACTIVATION else f"{sizes}, activation={self.activation.name}"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a packed linear layer cannot be copied or pickled: copy or save the model it was made from")


@cache
def packing_obstacle() -> str:
    """Return why this machine cannot pack weights; "" if it can. Found by packing and using a small weight."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this PyTorch has no oneDNN"
    layer = nn.Linear(32, 16, dtype=torch.float32, device="cpu")
    inputs = torch.randn(3, 32, dtype=torch.float32, device="cpu")
    try:
        with torch.no_grad(), invariant_rows():
            alike = torch.allclose(PackedLinear(layer, keep=False)(inputs), layer(inputs), atol=1e-5)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        return f"oneDNN packing does not run here: {type(error).__name__}"
    return "" if alike else "oneDNN packing gives other results here"


def is_plain(module: nn.Module) -> bool:
    """Return whether calling the module does what its class says: no hooks and no replaced `forward`."""
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return not any(hooks) and "forward" not in module.__dict__ and not hasattr(module, "_hf_hook")


def _obstacle(layer: nn.Linear | Conv1D) -> str:
    weight = layer.weight
    if not is_plain(layer):
        return "some carry hooks"
    if type(weight) not in (nn.Parameter, torch.Tensor) or type(weight.data) is not torch.Tensor:
        return "some hold weights of a special tensor type"
    if weight.device.type != "cpu":
        return f"packing is for the CPU, weights are on {weight.device.type}"
    if weight.dtype not in _PACKABLE:
        return f"{str(weight.dtype).removeprefix('torch.')} weights cannot be packed"
    width, height = weight.shape if isinstance(layer, Conv1D) else weight.shape[::-1]
    if not is_small(width, height, weight.dtype) and not best_plan(width, height, weight.dtype).packed:
        return "some are faster as they are"
    return ""


def _linear_sites(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Yield (parent, name, layer) of each `nn.Linear` and `Conv1D`, subclasses excluded."""
    for parent in model.modules():
        for name, child in list(parent._modules.items()):
            if type(child) in (nn.Linear, Conv1D):
                yield parent, name, child  # type: ignore[misc]


def pack_linears(model: nn.Module, *, keep: bool, pack: Pack = "auto") -> PackReport:
    """Replace the linear layers of `model`, in place, by packed ones.

    Args:
        model: the module tree to change.
        keep: True if the plain weights belong to the caller and stay; False frees them one by one.
        pack: False leaves all layers as they are. True packs each layer that can be packed and is not faster plain.
            "auto" does the same, but if the plain weights stay, the copy must take at most half of the free memory.

    Raises:
        OptionError: if `UNSPOOL_LINEAR` has no allowed value.
    """
    sites = list(_linear_sites(model))
    layers = {id(layer): layer for _, _, layer in sites}
    quantized = quantized_linears(model)
    total = len(layers.keys() | quantized.keys())
    if not pack:
        return PackReport(0, total, "; ".join(["packing is off", *kinds_in_words(model)]))
    forced = [f"{VARIABLE}={choice()}"] if choice() != "auto" and layers.keys() - quantized.keys() else []
    if choice() == "plain":
        return PackReport(0, total, "; ".join([*forced, *kinds_in_words(model)]))
    if reason := packing_obstacle():
        return PackReport(0, total, "; ".join([reason, *kinds_in_words(model)]))
    obstacles = {key: _obstacle(layer) for key, layer in layers.items()}
    able = {key for key, reason in obstacles.items() if not reason}
    if pack == "auto" and keep and (reason := _too_large([layers[key] for key in able])):
        return PackReport(0, total, reason)
    packed: dict[int, PackedLinear] = {}
    # Drop each plain layer before the next one is packed, to limit peak memory.
    del layers
    sites.reverse()
    while sites:
        parent, name, layer = sites.pop()
        if id(layer) in able:
            if id(layer) not in packed:
                packed[id(layer)] = PackedLinear(layer, keep=keep)
            setattr(parent, name, packed[id(layer)])
    if packed and not keep:
        trim_heap()
    reasons = sorted({reason for key, reason in obstacles.items() if reason and key not in quantized})
    reasons += forced + kinds_in_words(model)
    least_rows = max((layer.form.least_rows for layer in packed.values()), default=1)
    return PackReport(len(packed), total, "; ".join(reasons), least_rows)


def pack_rest(model: nn.Module, *, keep: bool, pack: Pack = "auto") -> PackReport:
    """Do as `pack_linears` for a model that can have packed layers already, and count those in the report."""
    before = [module for module in model.modules() if isinstance(module, PackedLinear)]
    report = pack_linears(model, keep=keep, pack=pack)
    reason = report.reason if report.total or not before else ""
    least_rows = max((layer.form.least_rows for layer in before), default=1)
    count = len(before)
    return PackReport(count + report.packed, count + report.total, reason, max(least_rows, report.least_rows))


def _too_large(layers: list[nn.Linear | Conv1D]) -> str:
    free = available_memory()
    needed = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    if free is None or needed * 2 <= free:
        return ""
    return f"a packed copy of {needed / 1e9:.1f} GB is more than half of the {free / 1e9:.1f} GB of free memory"


def repack(model: nn.Module) -> None:
    """Pack every packed layer of `model` again from its plain weight."""
    for module in model.modules():
        if isinstance(module, PackedLinear):
            module.repack()

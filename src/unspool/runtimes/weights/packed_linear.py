"""Packed linear layers: modules that hold their weight packed for our kernels.

Owns the choice of layers to pack, and the report of it. Does not know attention, caches or sequences.

A decode step on a CPU reads every weight from memory for a few rows. A packed weight is one sequential stream, which a
CPU reads faster than the rows of a plain one; results are equal up to rounding.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Set
from functools import partial
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.kernels.library import kernels, obstacle
from unspool.kernels.packed import Allocate, PackedWeight, linear, packing_obstacle
from unspool.machine.huge_pages import HugePages
from unspool.machine.memory import available_memory
from unspool.runtimes.module_tree import modules_in
from unspool.runtimes.quantized.info import kinds_in_words, quantized_linears
from unspool.runtimes.weights.autotune import VARIABLE, best_forms, choice, choose_streams, is_small, shape_of
from unspool.runtimes.weights.kernel_module import KernelModule
from unspool.runtimes.weights.lazy_weight import LazyWeight, Readings
from unspool.runtimes.weights.release_memory import trim_heap
from unspool.runtimes.weights.tied_embeddings import read_rows, weights_to_free
from unspool.runtimes.weights.trial import Shape

Pack: TypeAlias = bool | Literal["auto"]


_ALWAYS_FITS: Final = 1 << 20
"""Bytes of a copy of weights that needs no look at the free memory, which takes as long as such a copy."""


class PackReport(NamedTuple):
    """How many linear layers run on our kernels, of how many, and why the others do not ("" if all do)."""

    packed: int
    total: int
    reason: str = ""

    def __str__(self) -> str:
        text, library = f"{self.packed} of {self.total} linear layers packed", kernels()
        if self.packed and library is not None:
            text += f" for {library.level}"
        return f"{text} ({self.reason})" if self.reason else text


class PackedLinear(KernelModule):
    """`nn.Linear` or `Conv1D` with a copy of its weight that is packed for our kernels.

    Copy, pickle and state_dict cannot read the packed memory. So it is a plain attribute, and copying or pickling the
    module raises `TypeError`.

    Args:
        layer: an `nn.Linear` or a `Conv1D` on the CPU, of a dtype that can be packed here.
        keep: True if the plain weight stays in memory; False unpacks it if the values of `weight` are read, and keeps
            it after some readings.
        pages: memory for packed weights; None for memory of its own.
    """

    in_features: int
    out_features: int
    dtype: torch.dtype
    shape: torch.Size
    bias: torch.Tensor | None
    _packed: PackedWeight
    _transposed: bool
    _source: tuple[torch.Tensor, ...]
    _readings: Readings

    def __init__(self, layer: nn.Linear | Conv1D, *, keep: bool, pages: HugePages | None = None) -> None:
        super().__init__()
        parameters = layer._parameters
        weight, transposed = parameters["weight"], isinstance(layer, Conv1D)
        assert weight is not None, "a linear layer has a weight"
        width, height = weight.shape if transposed else weight.shape[::-1]
        self._parameters["bias"] = parameters["bias"]
        # An assignment by `nn.Module` takes a microsecond, and a model has many layers.
        vars(self).update(
            in_features=width,
            out_features=height,
            dtype=weight.dtype,
            shape=weight.shape,
            _transposed=transposed,
            # In a tuple, so that a parameter of the user's model is not registered here.
            _source=(weight,) if keep else (),
            _readings=Readings(),
        )
        self._pack(weight, (pages or HugePages()).bytes)

    def _pack(self, weight: torch.Tensor, allocate: Allocate) -> None:
        plain = weight.detach().T if self._transposed else weight.detach()
        vars(self)["_packed"] = PackedWeight(plain, bias=self._parameters["bias"], allocate=allocate)

    @property
    def weight(self) -> torch.Tensor:
        """The plain weight, in the layout of the layer that was packed, bit for bit. Values are unpacked when read."""
        if self._source:
            return self._source[0]
        if self._readings.kept is not None:
            return self._readings.kept
        rows = None if self._transposed else self._packed.rows
        return LazyWeight(self.shape, self.dtype, partial(self._readings.values, self.unpacked), rows)

    def unpacked(self) -> torch.Tensor:
        """Return the plain weight with its values."""
        if self._source:
            return self._source[0]
        plain = self._packed.unpacked()
        return plain.T if self._transposed else plain

    def repack(self) -> None:
        """Pack the kept weight again, into the same memory, after its values have changed."""
        assert self._source, "only a layer that keeps its plain weight can be packed again"
        memory = self._packed.memory
        self._pack(self._source[0], lambda _: memory)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return linear(inputs, self._packed)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"


def is_plain(module: nn.Module) -> bool:
    """Return whether a call of the module runs only the code of its class: no hooks and no replaced `forward`."""
    state = module.__dict__
    has_hooks = state["_forward_hooks"] or state["_forward_pre_hooks"]
    has_hooks = has_hooks or state["_backward_hooks"] or state["_backward_pre_hooks"]
    return not has_hooks and "forward" not in state and "_hf_hook" not in state


def _obstacle(layer: nn.Linear | Conv1D) -> str:
    """Return why a layer cannot be packed; "" if it can."""
    weight = layer.weight
    if not is_plain(layer):
        return "some carry hooks"
    if weight.device.type != "cpu":
        return f"packing is for the CPU, weights are on {weight.device.type}"
    if not _is_ordinary(weight):
        return "some hold weights of a special tensor type"
    return packing_obstacle(weight.dtype)


def _sides(layer: nn.Linear | Conv1D) -> tuple[int, int]:
    """Return the numbers of inputs and outputs."""
    width, height = layer.weight.shape if isinstance(layer, Conv1D) else layer.weight.shape[::-1]
    return width, height


def _to_pack(layers: Mapping[int, nn.Linear | Conv1D]) -> set[int]:
    """Return the layers that are faster packed. Small ones are packed without a trial."""
    large = {
        key: shape_of(*sides, layer.weight.dtype)
        for key, layer in layers.items()
        if not is_small(*(sides := _sides(layer)))
    }
    forms = best_forms(large.values())
    return {key for key in layers if key not in large or forms[large[key]] == "native"}


def _linear_sites(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear | Conv1D]]:
    """Yield (parent, name, layer) of each `nn.Linear` and `Conv1D`, subclasses excluded."""
    for parent in modules_in(model):
        for name, child in list(parent._modules.items()):
            if type(child) in (nn.Linear, Conv1D):
                yield parent, name, child  # type: ignore[misc]


def tunable_shapes(model: nn.Module) -> list[Shape]:
    """Return the shapes of a model's linear layers that autotuning chooses a form for."""
    layers = [layer for _, _, layer in _linear_sites(model) if not _obstacle(layer) and not is_small(*_sides(layer))]
    return list(dict.fromkeys(shape_of(*_sides(layer), layer.weight.dtype) for layer in layers))


def pack_linears(model: nn.Module, *, keep: bool, pack: Pack = "auto") -> PackReport:
    """Replace the linear layers of `model`, in place, by packed ones.

    Args:
        model: the module tree to change.
        keep: True if the plain weights belong to the caller and stay; False frees them one by one.
        pack: False leaves all layers as they are. True packs each layer that can be packed and is not faster plain.
            "auto" does the same, but if the plain weights stay, the copy must take at most half of the free memory.

    Raises:
        OptionError: if the value of `UNSPOOL_LINEAR` is not allowed.
    """
    sites = list(_linear_sites(model))
    layers = {id(layer): layer for _, _, layer in sites}
    quantized = quantized_linears(model)
    total = len(layers.keys() | quantized.keys())
    if not pack:
        return PackReport(0, total, "; ".join(["packing is off", *kinds_in_words(model, quantized)]))
    forced = [f"{VARIABLE}={choice()}"] if choice() != "auto" and layers.keys() - quantized.keys() else []
    obstacles = {key: _obstacle(layer) for key, layer in layers.items() if key not in quantized}
    able = {key: layer for key, layer in layers.items() if not obstacles.get(key, "quantized")}
    chosen = set() if choice() == "plain" else _to_pack(able)
    if pack == "auto" and keep and (reason := _too_large([able[key] for key in chosen])):
        return PackReport(0, total, reason)
    reasons = {reason for reason in obstacles.values() if reason}
    if choice() == "auto" and len(chosen) < len(able):
        reasons.add("some are faster as they are")
    if not {"int8", "int4"}.isdisjoint(quantized.values()):
        choose_streams()
        reasons |= {obstacle()} - {""}
    # Drop each plain layer before the next one is packed, to limit peak memory.
    del layers, able
    pages = HugePages()
    freed = {} if keep else weights_to_free(model, chosen)
    if not keep:
        _move(model, freed, pages)
    _replace(sites, chosen, freed, pages, keep=keep)
    if not keep:
        trim_heap()
    return PackReport(len(chosen), total, "; ".join([*sorted(reasons), *forced, *kinds_in_words(model, quantized)]))


def _move(model: nn.Module, freed: Container[int], pages: HugePages) -> None:
    """Copy the parameters that stay plain into memory of ours, large ones on huge pages.

    transformers maps the file of a checkpoint into memory. Without its tensors the file takes no memory any more.
    """
    moved: set[int] = set()
    for module in modules_in(model):
        for parameter in module._parameters.values():
            if parameter is None or id(parameter) in freed or id(parameter) in moved:
                continue
            if _is_ordinary(parameter):
                moved.add(id(parameter))
                parameter.data = pages.copy(parameter.data)


def _replace(
    sites: list[tuple[nn.Module, str, nn.Linear | Conv1D]],
    chosen: Set[int],
    freed: Mapping[int, list[nn.Embedding]],
    pages: HugePages,
    *,
    keep: bool,
) -> None:
    """Replace layers by packed ones, with their embeddings, and empty the list. freed: see `weights_to_free`."""
    packed: dict[int, PackedLinear] = {}
    sites.reverse()
    while sites:
        parent, name, layer = sites.pop()
        key = id(layer)
        if key in chosen:
            if key not in packed:
                packed[key] = PackedLinear(layer, keep=keep, pages=pages)
                read_rows(freed.get(id(layer.weight), []), packed[key].weight)
            parent._modules[name] = packed[key]


def _is_ordinary(weight: torch.Tensor) -> bool:
    """Return whether a weight is a plain tensor on the CPU."""
    is_plain_type = type(weight) in (nn.Parameter, torch.Tensor) and type(weight.data) is torch.Tensor
    return is_plain_type and weight.device.type == "cpu"


def pack_rest(model: nn.Module, *, keep: bool, pack: Pack = "auto") -> PackReport:
    """Do as `pack_linears` for a model that can have packed layers already, and count those in the report."""
    before = sum(isinstance(module, PackedLinear) for module in modules_in(model))
    report = pack_linears(model, keep=keep, pack=pack)
    reason = report.reason if report.total or not before else ""
    return PackReport(before + report.packed, before + report.total, reason)


def _too_large(layers: list[nn.Linear | Conv1D]) -> str:
    needed = sum(layer.weight.numel() * layer.weight.element_size() for layer in layers)
    free = available_memory() if needed > _ALWAYS_FITS else None
    if free is None or needed * 2 <= free:
        return ""
    return f"a packed copy of {needed / 1e9:.1f} GB is more than half of the {free / 1e9:.1f} GB of free memory"

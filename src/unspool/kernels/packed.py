"""Packed weights, and products of few rows with them.

Owns the memory of a packed weight. Does not know layers, or how numbers are rounded to 8 or 4 bits.

    y = activation(x @ weight.T + bias) + residual
    y = activation(x @ gate.T + ...) * (x @ weight.T + ...) + residual      with two matrices

The bits of a row of y depend on this row of x alone: each output is summed in one order for any number of rows, any
number of threads and any instruction set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Final, Literal, NoReturn, TypeAlias

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from unspool.kernels.library import INPUT_TYPES, Kernels, kernels, obstacle

Activation: TypeAlias = Literal["none", "relu", "silu", "gelu", "gelu_tanh"]
Allocate: TypeAlias = Callable[[int], torch.Tensor]

_ACTIVATIONS: Final = ("none", "relu", "silu", "gelu", "gelu_tanh")
_KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
_BLOCK: Final = 32
_INT8, _INT4 = 2, 3
INT4_GROUP: Final = 32
"""Inputs that share a scale and a zero in int4. The number of inputs must be a multiple of this."""


_UNITS_PER_THREAD: Final = 8
"""Pieces of work for each thread, at least: a thread that is delayed leaves the rest to others."""


class _Weight(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("scale", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("outputs", ctypes.c_int64),
        ("inputs", ctypes.c_int64),
        ("kind", ctypes.c_int32),
        ("unit", ctypes.c_int32),
        ("gated", ctypes.c_int32),
        ("activation", ctypes.c_int32),
    ]


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("numbers", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


def _bytes(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class PackedWeight:
    """One matrix [outputs, inputs] in packed form, or two for a gated product.

    Args:
        weights: one matrix, or the gate and the matrix that it multiplies; float32, bfloat16, int8, or uint8 for
            int4 numbers in 0 ... 15. Any strides; not needed afterwards.
        scales: one per matrix: float32 [outputs] for int8; bfloat16 (scale, zero) [inputs / 32, outputs, 2] for int4,
            with weight = (number - 8) * scale + zero. Empty for floating-point weights.
        bias: [outputs] per matrix, or empty for none. Copied.
        activation: applied after the bias, to the gate if there are two matrices.
        allocate: returns uninitialized memory of so many bytes, on the CPU and aligned to 64 bytes.

    Attributes:
        outputs, inputs: sizes of one matrix.
        memory: all bytes of the packed form.

    Raises:
        RuntimeError: if the kernels cannot be used here.
    """

    def __init__(
        self,
        *weights: torch.Tensor,
        scales: Sequence[torch.Tensor] = (),
        bias: Sequence[torch.Tensor] = (),
        activation: Activation = "none",
        allocate: Allocate = _bytes,
    ) -> None:
        self._library = _require()
        self.outputs, self.inputs = weights[0].shape
        self.dtype = weights[0].dtype
        kind, gated = _KINDS[self.dtype], len(weights) == 2
        self._check(weights, scales, bias)
        unit = _unit(-(-self.outputs // _BLOCK) << gated, gated)
        facts = (self.outputs, self.inputs, kind, unit, gated, _ACTIVATIONS.index(activation))
        self._weight = _Weight(None, None, None, *facts)
        self._address = ctypes.addressof(self._weight)
        size = self._library.functions.unspool_bytes(self._address)
        vectors = {"scale": _in_blocks(scales if kind == _INT8 else ()), "bias": _in_blocks(bias)}
        self.memory = allocate(size + sum(4 * each.numel() for each in vectors.values()))
        start = self.memory.data_ptr()
        assert self.memory.device.type == "cpu", "memory for weights must be on the CPU"
        assert start % 64 == 0 and self.memory.is_contiguous(), "memory for weights must be aligned to 64 bytes"
        self._weight.data, place = start, size
        for name, vector in vectors.items():
            if vector.numel():
                end = place + 4 * vector.numel()
                self.memory[place:end].view(torch.float32).copy_(vector)
                setattr(self._weight, name, start + place)
                place = end
        self._copy(weights, scales if kind == _INT4 else (), back=False)
        self._linear = self._library.functions.unspool_linear

    def _check(
        self, weights: Sequence[torch.Tensor], scales: Sequence[torch.Tensor], bias: Sequence[torch.Tensor]
    ) -> None:
        shape = (self.outputs, self.inputs)
        for given in (weights, scales, bias):
            assert len(given) in (0, len(weights)), "one scale and one bias per matrix"
        assert all(each.shape == shape and each.dtype == self.dtype for each in weights), "matrices of one form"
        assert all(each.device.type == "cpu" for each in (*weights, *scales, *bias)), "weights on the CPU"
        assert len(scales) == (0 if self.dtype in INPUT_TYPES else len(weights)), "scales for integers"
        assert self.dtype != torch.uint8 or self.inputs % INT4_GROUP == 0, "int4 needs whole groups"

    def unpacked(self) -> list[torch.Tensor]:
        """Return the numbers of the matrices, bit for bit. --> [outputs, inputs] each"""
        matrices = [torch.empty(self.outputs, self.inputs, dtype=self.dtype, device="cpu") for _ in range(self._count)]
        self._copy(matrices, [self._new_scales() for _ in matrices] if self._weight.kind == _INT4 else (), back=True)
        return matrices

    def scales(self) -> list[torch.Tensor]:
        """Return the scales of the matrices as they were given; empty for floating-point weights."""
        if self._weight.kind == _INT8:
            start, size = self._weight.scale - self._weight.data, self._count * -(-self.outputs // _BLOCK) * _BLOCK
            blocks = self.memory[start : start + 4 * size].view(torch.float32).view(-1, self._count, _BLOCK)
            return [blocks[:, index].reshape(-1)[: self.outputs].clone() for index in range(self._count)]
        if self._weight.kind != _INT4:
            return []
        found = [self._new_scales() for _ in range(self._count)]
        shape = (self.outputs, self.inputs)
        self._copy([torch.empty(shape, dtype=self.dtype, device="cpu") for _ in found], found, back=True)
        return found

    @property
    def _count(self) -> int:
        return 1 + int(self._weight.gated)

    def _new_scales(self) -> torch.Tensor:
        return torch.empty(self.inputs // INT4_GROUP, self.outputs, 2, dtype=torch.bfloat16, device="cpu")

    def _copy(self, weights: Sequence[torch.Tensor], scales: Sequence[torch.Tensor], *, back: bool) -> None:
        matrices = (_Matrix * len(weights))()
        held = [each.detach().contiguous() for each in (*weights, *scales)]
        addresses: list[int | None] = [each.data_ptr() for each in held]
        for index in range(len(weights)):
            matrices[index] = _Matrix(addresses[index], addresses[len(weights) + index] if scales else None)
        self._library.functions.unspool_pack(self._address, matrices, back, torch.get_num_threads())

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a packed weight cannot be copied or pickled: copy or save the weight it was made from")


def linear(inputs: torch.Tensor, weight: PackedWeight, residual: torch.Tensor | None = None) -> torch.Tensor:
    """Return the product of the rows of `inputs` with a packed weight; see the head of this file.

    Tracers see this call as one call of PyTorch.

    Args:
        inputs: [..., inputs], float32 or bfloat16, on the CPU.
        weight: a packed weight of any dtype.
        residual: [..., outputs], the dtype of `inputs`; added at the end. None for none.

    Returns:
        [..., outputs], the dtype of `inputs`.

    Raises:
        ValueError: if a shape or a dtype is not as described.
    """
    if has_torch_function_unary(inputs):
        return handle_torch_function(linear, (inputs,), inputs, weight, residual)
    kind, shape = INPUT_TYPES.get(inputs.dtype), inputs.shape
    if kind is None or shape[-1] != weight.inputs:
        raise ValueError(f"inputs must be float32 or bfloat16 [..., {weight.inputs}], got {inputs.dtype} {list(shape)}")
    x = inputs if inputs.is_contiguous() else inputs.contiguous()
    found = x.new_empty((*shape[:-1], weight.outputs))
    address = None
    if residual is not None:
        if residual.dtype != inputs.dtype or residual.shape != found.shape:
            raise ValueError(f"a residual must be {inputs.dtype} {list(found.shape)}, got {residual.dtype}")
        residual = residual.contiguous()
        address = residual.data_ptr()
    rows = x.numel() // weight.inputs
    if weight._linear(weight._address, x.data_ptr(), found.data_ptr(), address, rows, kind, torch.get_num_threads()):
        raise MemoryError("no memory for the inputs of a product")
    return found


def packing_obstacle(dtype: torch.dtype) -> str:
    """Return why weights of a floating-point dtype cannot be packed here; "" if they can."""
    return obstacle() if dtype in INPUT_TYPES else f"{str(dtype).removeprefix('torch.')} weights cannot be packed"


def _require() -> Kernels:
    found = kernels()
    if found is None:
        raise RuntimeError(obstacle())
    return found


def _unit(blocks: int, gated: bool) -> int:
    """Return how many blocks are one piece of work: more blocks read the inputs less often."""
    least = _UNITS_PER_THREAD * torch.get_num_threads()
    return next((unit for unit in (4, 2) if blocks // unit >= least), 2 if gated else 1)


def _in_blocks(vectors: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return vectors [outputs] as whole blocks, block by block in turn. --> [blocks * 32], float32; [0] for none"""
    if not vectors:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    missing = -len(vectors[0]) % _BLOCK
    padded = [torch.nn.functional.pad(each.detach().float(), (0, missing)).view(-1, _BLOCK) for each in vectors]
    return torch.stack(padded, 1).reshape(-1)

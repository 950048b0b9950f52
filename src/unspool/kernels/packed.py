"""Packed weights, and products of few rows with them.

Owns the memory of a packed weight. Does not know layers, or how numbers are rounded to 8 or 4 bits.

    y = x @ weight.T + bias + residual

The bits of a row of y depend on this row of x alone: each output is summed in one order for any number of rows, any
number of threads and any instruction set.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Final, NoReturn, TypeAlias

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from unspool.kernels.library import INPUT_TYPES, Kernels, kernels, obstacle

Allocate: TypeAlias = Callable[[int], torch.Tensor]

_KINDS: Final = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}
_BLOCK: Final = 32
_INT8, _INT4 = 2, 3
INT4_GROUP: Final = 32
"""Inputs that share a scale and a zero in int4. The number of inputs must be a multiple of this."""


STREAMS: Final = (0, 1, 4)
"""Numbers of places of a packed weight that a thread can ask for ahead, side by side; 0 asks for nothing."""

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
    ]


class _Matrix(ctypes.Structure):
    _fields_ = [
        ("numbers", ctypes.c_void_p),
        ("scales", ctypes.c_void_p),
    ]


def _bytes(size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device="cpu")


class PackedWeight:
    """One matrix [outputs, inputs] in packed form.

    Args:
        weight: float32, bfloat16, int8, or uint8 for int4 numbers in 0 ... 15. Any strides; not needed afterwards.
        scales: float32 [outputs] for int8; bfloat16 (scale, zero) [inputs / 32, outputs, 2] for int4,
            with weight = (number - 8) * scale + zero. None for floating-point weights.
        bias: [outputs], or None for none. Copied.
        allocate: returns uninitialized memory of so many bytes, on the CPU and aligned to 64 bytes.

    Attributes:
        outputs, inputs: sizes of the matrix.
        memory: all bytes of the packed form.

    Raises:
        RuntimeError: if the kernels cannot be used here.
    """

    def __init__(
        self,
        weight: torch.Tensor,
        *,
        scales: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        allocate: Allocate = _bytes,
    ) -> None:
        self._library = _require()
        self.outputs, self.inputs = weight.shape
        self.dtype = weight.dtype
        kind = _KINDS[self.dtype]
        assert all(each is None or each.device.type == "cpu" for each in (weight, scales, bias)), "weights on the CPU"
        assert (scales is None) == (self.dtype in INPUT_TYPES), "scales for integers"
        assert self.dtype != torch.uint8 or self.inputs % INT4_GROUP == 0, "int4 needs whole groups"
        self._weight = _Weight(None, None, None, self.outputs, self.inputs, kind, _unit(-(-self.outputs // _BLOCK)))
        self._address = ctypes.addressof(self._weight)
        size = self._library.functions.unspool_bytes(self._address)
        given = {"scale": scales if kind == _INT8 else None, "bias": bias}
        vectors = {name: _in_blocks(vector) for name, vector in given.items() if vector is not None}
        self.memory = allocate(size + sum(4 * each.numel() for each in vectors.values()))
        start = self.memory.data_ptr()
        assert self.memory.device.type == "cpu", "memory for weights must be on the CPU"
        assert start % 64 == 0 and self.memory.is_contiguous(), "memory for weights must be aligned to 64 bytes"
        self._weight.data, place = start, size
        for name, vector in vectors.items():
            setattr(self._weight, name, start + place)
            ctypes.memmove(start + place, vector.data_ptr(), 4 * vector.numel())
            place += 4 * vector.numel()
        self._copy(weight, scales if kind == _INT4 else None, back=False)
        self._linear = self._library.functions.unspool_linear

    def unpacked(self) -> torch.Tensor:
        """Return the numbers of the matrix, bit for bit. --> [outputs, inputs]"""
        return self._unpacked()[0]

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """Return rows of a floating-point matrix, bit for bit.

        Args:
            ids: [...], int64 or int32, on the CPU.

        Returns:
            [..., inputs]

        Raises:
            IndexError: if an id is negative, or not below `outputs`.
            ValueError: if the ids are of another dtype, or on another device.
        """
        assert self.dtype in INPUT_TYPES, "the rows of an integer matrix need scales"
        if ids.dtype not in (torch.int64, torch.int32) or not ids.is_cpu:
            raise ValueError(f"ids must be int64 or int32 on the CPU, got {ids.dtype} on {ids.device}")
        ids = ids.long().contiguous()
        found = ids.new_empty((*ids.shape, self.inputs), dtype=self.dtype)
        run, threads = self._library.functions.unspool_rows, torch.get_num_threads()
        if run(self._address, ids.data_ptr(), found.data_ptr(), ids.numel(), threads):
            raise IndexError(f"an id of a row must be in [0, {self.outputs})")
        return found

    def scales(self) -> torch.Tensor | None:
        """Return the scales as they were given; None for floating-point weights."""
        if self._weight.kind == _INT8:
            start = self._weight.scale - self._weight.data
            return self.memory[start : start + 4 * self.outputs].view(torch.float32).clone()
        return self._unpacked()[1]

    def _unpacked(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the numbers, and the scales of int4."""
        weight, scales = torch.empty(self.outputs, self.inputs, dtype=self.dtype, device="cpu"), None
        if self._weight.kind == _INT4:
            shape = (self.inputs // INT4_GROUP, self.outputs, 2)
            scales = torch.empty(shape, dtype=torch.bfloat16, device="cpu")
        self._copy(weight, scales, back=True)
        return weight, scales

    def _copy(self, weight: torch.Tensor, scales: torch.Tensor | None, *, back: bool) -> None:
        held = [None if each is None else each.detach().contiguous() for each in (weight, scales)]
        matrix = _Matrix(*(None if each is None else each.data_ptr() for each in held))
        self._library.functions.unspool_pack(self._address, ctypes.addressof(matrix), back, torch.get_num_threads())

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


def set_streams(count: int) -> None:
    """Read packed weights in so many streams per thread, in all threads of this process. Results keep their bits.

    Args:
        count: one of `STREAMS`; 1 at the start of a process. With 0, few rows are left to the prefetchers of the CPU,
            and many rows read one stream.

    Raises:
        ValueError: if the count is another one.
        RuntimeError: if the kernels cannot be used here.
    """
    if count not in STREAMS:
        raise ValueError(f"streams must be one of {STREAMS}, got {count}")
    _require().functions.unspool_set_streams(count)


def packing_obstacle(dtype: torch.dtype) -> str:
    """Return why weights of a floating-point dtype cannot be packed here; "" if they can."""
    return obstacle() if dtype in INPUT_TYPES else f"{str(dtype).removeprefix('torch.')} weights cannot be packed"


def _require() -> Kernels:
    found = kernels()
    if found is None:
        raise RuntimeError(obstacle())
    return found


def _unit(blocks: int) -> int:
    """Return how many blocks are one piece of work: more blocks read the inputs less often."""
    least = _UNITS_PER_THREAD * torch.get_num_threads()
    return next((unit for unit in (4, 2) if blocks // unit >= least), 1)


def _in_blocks(vector: torch.Tensor) -> torch.Tensor:
    """Return a vector [outputs], filled up to whole blocks. --> [blocks * 32], float32, contiguous"""
    missing = -vector.shape[0] % _BLOCK
    numbers = vector.detach().float().contiguous()
    return torch.nn.functional.pad(numbers, (0, missing)) if missing else numbers

"""RMSNorm, rotary embeddings, sums and lookups in one call each, with the bits of PyTorch's operators.

Owns the description of a call. Does not know graphs or modules. Each row is computed alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, lru_cache
from typing import Any, Final, NoReturn

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from unspool.kernels.library import INPUT_TYPES, kernels

_LANES: Final = (8, 4)
"""Numbers of a vector in PyTorch's sums: by CPU and version."""

SHORTEST_ROW: Final = 8
"""Numbers of a row of `rms_norm`, at least, for PyTorch's bits: PyTorch sums shorter rows in another order."""


class _Norm(ctypes.Structure):
    _fields_ = [
        ("weight", ctypes.c_void_p),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("type", "rounds", "lanes")),
    ]


class _Rotation(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64 * 2) for name in ("sizes", "x_strides", "cos_strides", "sin_strides", "y_strides")),
        *((name, ctypes.c_int64) for name in ("width", "rotated")),
        ("type", ctypes.c_int32),
    ]


class _Sum(ctypes.Structure):
    _fields_ = [("width", ctypes.c_int64), ("type", ctypes.c_int32)]


class Norm:
    """An RMSNorm for `rms_norm`. The kernels must be there.

    Args:
        weight: [width]. Shared if it is float32.
        eps: added to the mean of squares.
        dtype: of inputs and results, float32 or bfloat16.
        rounds: True to round to `dtype` before the product with the weight, as Llama does.
        lanes: numbers of a vector in PyTorch's sums; None to find out.
    """

    def __init__(
        self, weight: torch.Tensor, eps: float, dtype: torch.dtype, *, rounds: bool, lanes: int | None = None
    ) -> None:
        self._run = _library().unspool_norm
        self.dtype, self.width = dtype, weight.shape[0]
        self._weight = weight.detach().float().contiguous()
        lanes = sum_lanes() if lanes is None else lanes
        self._form = _Norm(self._weight.data_ptr(), self.width, eps, INPUT_TYPES[dtype], rounds, lanes)
        self._address = ctypes.addressof(self._form)

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a norm holds addresses, so it cannot be copied or pickled: make a new one")


def rms_norm(x: torch.Tensor, norm: Norm) -> torch.Tensor:
    """Return x / sqrt(mean(x^2) + eps) * weight over the last dimension.

    Tracers see this call as one call of PyTorch.

    Args:
        x: [..., width], the dtype of the norm, on the CPU.

    Returns:
        The shape of `x`, and its strides if it is dense.

    Raises:
        ValueError: if a shape or a dtype is not as described.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(rms_norm, (x,), x, norm)
    if not x.is_cpu or x.dtype != norm.dtype or x.shape[-1] != norm.width or x.stride(-1) != 1:
        raise ValueError(f"a norm of {norm.dtype} [..., {norm.width}] got {x.dtype} {list(x.shape)}")
    # The rows of a dense tensor follow each other in memory in some order, and the result has the same order.
    x = x if x.is_contiguous() or _is_dense(x) else x.clone()
    y = torch.empty_like(x)
    norm._run(norm._address, x.data_ptr(), y.data_ptr(), x.numel() // norm.width, torch.get_num_threads())
    return y


def _is_dense(x: torch.Tensor) -> bool:
    """Return whether the numbers of a tensor fill their part of the memory, in any order of the dimensions."""
    count = 1
    for stride, size in sorted(zip(x.stride(), x.shape, strict=True)):
        if size != 1 and stride != count:
            return False
        count *= size
    return True


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, half: int) -> torch.Tensor:
    """Return x * cos + (-second half of x, first half of x) * sin; numbers beyond the width of `cos` stay.

    Args:
        x: [1, n, m, width], float32 or bfloat16, on the CPU.
        cos, sin: [1, n or 1, m or 1, 2 * half], the dtype of `x`.
        half: half of the numbers that are rotated.

    Returns:
        [1, n, m, width], in the order of the strides of `x`.

    Raises:
        ValueError: if a shape or a dtype is not as described.
    """
    if not x.is_cpu or not x.dtype == cos.dtype == sin.dtype:
        raise ValueError(f"tensors to rotate must be on the CPU and of one dtype, got {x.dtype} and {cos.dtype}")
    y = torch.empty_like(x)
    strides = (x.stride(), cos.stride(), sin.stride(), y.stride())
    run, form = _rotation(x.dtype, half, x.shape, cos.shape, sin.shape, strides)
    run(form, x.data_ptr(), cos.data_ptr(), sin.data_ptr(), y.data_ptr(), torch.get_num_threads())
    return y


def add(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return x + z.

    Args:
        x, z: of one shape [..., width] and one dtype, float32 or bfloat16, on the CPU.

    Returns:
        Their shape, and their strides if both are dense and have the same strides.

    Raises:
        ValueError: if a shape or a dtype is not as described.
    """
    if not x.is_cpu or x.dtype not in INPUT_TYPES or (x.dtype, x.shape) != (z.dtype, z.shape):
        raise ValueError(f"cannot add {z.dtype} {list(z.shape)} to {x.dtype} {list(x.shape)}")
    if x.stride() != z.stride() or not (x.is_contiguous() or _is_dense(x)):
        return x + z
    y, width = torch.empty_like(x), x.shape[-1]
    rows = x.numel() // max(1, width)
    form = _sum(width, x.dtype)
    _library().unspool_sum(form, x.data_ptr(), z.data_ptr(), y.data_ptr(), rows, torch.get_num_threads())
    return y


@lru_cache(maxsize=256)
def _sum(width: int, dtype: torch.dtype) -> Any:
    return ctypes.byref(_Sum(width, INPUT_TYPES[dtype]))


def gather(table: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Return rows of a table, as `torch.nn.functional.embedding`.

    Args:
        table: [..., n, width], on the CPU; the leading sizes are 1.
        ids: [...], int64, on the CPU.

    Returns:
        [..., ids..., width]

    Raises:
        IndexError: if an id is not in [0, n).
        ValueError: if a tensor is not as described.
    """
    *ones, count, width = table.shape
    if not table.is_cpu or any(size != 1 for size in ones):
        raise ValueError(f"a table must be on the CPU and [..., n, width], got {list(table.shape)} on {table.device}")
    if ids.dtype != torch.int64 or not ids.is_cpu:
        raise ValueError(f"ids must be int64 on the CPU, got {ids.dtype} on {ids.device}")
    table, ids = table.contiguous(), ids.contiguous()
    found = table.new_empty((*ones, *ids.shape, width))
    row = width * table.element_size()
    if _library().unspool_gather(table.data_ptr(), ids.data_ptr(), found.data_ptr(), ids.numel(), count, row):
        raise IndexError(f"an id of a row must be in [0, {count})")
    return found


@lru_cache(maxsize=1024)
def _rotation(
    dtype: torch.dtype,
    half: int,
    shape: torch.Size,
    cos_shape: torch.Size,
    sin_shape: torch.Size,
    strides: tuple[tuple[int, ...], ...],
) -> tuple[Callable[..., None], Any]:
    """Return the kernel and the form of a rotation. strides: of x, cos, sin and the result."""
    facts = list(zip((shape, cos_shape, sin_shape, shape), strides, strict=True))
    for each, by in facts:
        if dtype not in INPUT_TYPES or len(each) != 4 or each[0] != 1 or by[3] != 1:
            raise ValueError(f"cannot rotate {dtype} {list(shape)} with strides {by}")
    for each in (cos_shape, sin_shape):
        if each[3] != 2 * half or shape[3] < 2 * half or any(each[at] not in (1, shape[at]) for at in (1, 2)):
            raise ValueError(f"cannot rotate {list(shape)} by {list(each)}")
    steps = [tuple(by[at] if each[at] > 1 else 0 for at in (1, 2)) for each, by in facts]
    pairs = [(ctypes.c_int64 * 2)(*pair) for pair in (tuple(shape[1:3]), *steps)]
    return _library().unspool_rotate, ctypes.byref(_Rotation(*pairs, shape[3], 2 * half, INPUT_TYPES[dtype]))


@cache
def sum_lanes() -> int | None:
    """Return the numbers of a vector in PyTorch's sums here; None if the order of its sums is another one.

    The kernels must be there.
    """
    sizes = (8, 100, 576, 1000, 4099)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(16, size, generator=generator, dtype=torch.float32, device="cpu") for size in sizes]

    def fits(lanes: int) -> bool:
        return all(
            torch.equal(
                rms_norm(x, Norm(torch.ones(x.shape[1], device="cpu"), 0.0, torch.float32, rounds=False, lanes=lanes)),
                x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)),
            )
            for x in rows
        )

    return next(filter(fits, _LANES), None)


def _library() -> ctypes.CDLL:
    library = kernels()
    assert library is not None, "the kernels are missing"
    return library.functions

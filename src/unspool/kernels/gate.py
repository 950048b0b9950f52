"""Activations, alone or times another tensor, in one call. Does not know modules."""

from __future__ import annotations

import ctypes
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from unspool.kernels.library import INPUT_TYPES, kernels

Activation: TypeAlias = Literal["relu", "silu", "gelu", "gelu_tanh"]

_ACTIVATIONS: Final = ("relu", "silu", "gelu", "gelu_tanh")


class _Gate(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("width", "x_row", "factor_row")),
        *((name, ctypes.c_int32) for name in ("type", "activation")),
    ]


def gate(x: torch.Tensor, activation: Activation, factor: torch.Tensor | None = None) -> torch.Tensor:
    """Return activation(x), rounded to the dtype of `x`, times a factor. The kernels must be there.

    Tracers see this call as one call of PyTorch.

    Args:
        x: [..., width], float32 or bfloat16, on the CPU.
        activation: "gelu" is exact up to 1e-7, "gelu_tanh" the approximation by tanh.
        factor: the shape and dtype of `x`; None for 1.

    Returns:
        The shape of `x`, contiguous.

    Raises:
        ValueError: if a shape or a dtype is not as described.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(gate, (x,), x, activation, factor)
    if not x.is_cpu or x.dtype not in INPUT_TYPES:
        raise ValueError(f"an activation needs float32 or bfloat16 on the CPU, got {x.dtype} on {x.device}")
    x, x_row = _in_rows(x)
    address, factor_row = None, 0
    if factor is not None:
        if factor.dtype != x.dtype or factor.shape != x.shape:
            raise ValueError(f"a factor must be {x.dtype} {list(x.shape)}, got {factor.dtype} {list(factor.shape)}")
        factor, factor_row = _in_rows(factor)
        address = factor.data_ptr()
    library = kernels()
    assert library is not None, "the kernels are missing"
    y, width = x.new_empty(x.shape), x.shape[-1]
    rows, form = x.numel() // max(1, width), _form(width, x_row, factor_row, x.dtype, activation)
    library.functions.unspool_gate(form, x.data_ptr(), address, y.data_ptr(), rows, torch.get_num_threads())
    return y


@lru_cache(maxsize=256)
def _form(width: int, x_row: int, factor_row: int, dtype: torch.dtype, activation: Activation) -> Any:
    return ctypes.byref(_Gate(width, x_row, factor_row, INPUT_TYPES[dtype], _ACTIVATIONS.index(activation)))


def _in_rows(x: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return the tensor, and the numbers from row to row: a part of the last dimension is not copied."""
    if x.ndim > 1 and x.stride(-1) == 1 and x.shape[:-2].numel() == 1:
        return x, x.stride(-2)
    return x.contiguous(), x.shape[-1]

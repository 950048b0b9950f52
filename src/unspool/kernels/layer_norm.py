"""LayerNorm in one call. Owns the description of a call. Does not know modules."""

from __future__ import annotations

import ctypes

import torch
from torch.overrides import handle_torch_function, has_torch_function_unary

from unspool.kernels.library import INPUT_TYPES, kernels


class _LayerNorm(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        ("width", ctypes.c_int64),
        ("eps", ctypes.c_float),
        ("type", ctypes.c_int32),
    ]


class LayerNorm:
    """A LayerNorm for `layer_norm`. The kernels must be there.

    Args:
        weight, bias: [width], on the CPU; the memory of float32 is shared, other types are copied. None for 1 and 0.
        width: numbers of a row.
        eps: added to the variance.
        dtype: of inputs and results, float32 or bfloat16.
    """

    def __init__(
        self, weight: torch.Tensor | None, bias: torch.Tensor | None, width: int, eps: float, dtype: torch.dtype
    ) -> None:
        library = kernels()
        assert library is not None, "the kernels are missing"
        self._run = library.functions.unspool_layer_norm
        self.dtype, self.width = dtype, width
        self._weight = _vector(weight, width, 1.0)
        self._bias = _vector(bias, width, 0.0)
        self._form = _LayerNorm(self._weight.data_ptr(), self._bias.data_ptr(), width, eps, INPUT_TYPES[dtype])
        self._address = ctypes.addressof(self._form)


def _vector(given: torch.Tensor | None, width: int, missing: float) -> torch.Tensor:
    """Return a parameter in float32, or `missing` for each number of a row. --> [width]"""
    if given is None:
        return torch.full((width,), missing, dtype=torch.float32, device="cpu")
    return given.detach().float().contiguous()


def layer_norm(x: torch.Tensor, norm: LayerNorm) -> torch.Tensor:
    """Return (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, computed in float32.

    A row has the same bits beside any other rows. Tracers see this call as one call of PyTorch.

    Args:
        x: [..., width], the dtype of the norm, on the CPU.

    Returns:
        The shape of `x`, contiguous.

    Raises:
        ValueError: if a shape or a dtype is not as described.
    """
    if has_torch_function_unary(x):
        return handle_torch_function(layer_norm, (x,), x, norm)
    if not x.is_cpu or x.dtype != norm.dtype or x.shape[-1] != norm.width:
        raise ValueError(f"a norm of {norm.dtype} [..., {norm.width}] got {x.dtype} {list(x.shape)}")
    x = x.contiguous()
    y = torch.empty_like(x)
    norm._run(norm._address, x.data_ptr(), y.data_ptr(), x.numel() // norm.width, torch.get_num_threads())
    return y

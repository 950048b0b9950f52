"""The forms of a linear layer's weight: plain, packed for our kernels, or packed by oneDNN.

Owns how each form is made, multiplied and read back. Does not know which form a layer has (autotune.py), or modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F

from unspool.kernels.library import kernels
from unspool.kernels.packed import Allocate, PackedWeight, linear
from unspool.machine.huge_pages import HugePages, collapse
from unspool.tuning import PACK_ROWS

Form: TypeAlias = Literal["plain", "native", "packed"]
"""plain: as PyTorch stores it. native: packed for our kernels. packed: packed by oneDNN."""

DTYPES: Final = (torch.float32, torch.bfloat16)
"""The dtypes that can be packed."""


class Weight(Protocol):
    """A weight in one form, with the bias of its layer."""

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        """Return rows @ weight.T + bias. rows: [..., inputs] --> [..., outputs]"""
        ...

    def dense(self) -> torch.Tensor:
        """Return the plain weight, bit for bit. --> [outputs, inputs]"""
        ...


class PlainWeight:
    """A plain weight, multiplied by `torch.nn.functional.linear`.

    Args:
        weight: [outputs, inputs]. Not copied.
        bias: [outputs], or None for none.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        return F.linear(rows, self._weight, self._bias)

    def dense(self) -> torch.Tensor:
        return self._weight


class NativeWeight:
    """A weight in the order in which our kernels read it. The bits of a row do not depend on other rows.

    Args:
        weight: [outputs, inputs], any strides, float32 or bfloat16, on the CPU.
        bias: [outputs], or None for none.
        allocate: returns memory for the packed weight: so many bytes, aligned to 64 bytes.

    Attributes:
        memory: the memory of the packed weight, uint8.

    Raises:
        RuntimeError: if the kernels cannot be used here.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None, allocate: Allocate) -> None:
        self._packed = PackedWeight(weight, bias=() if bias is None else (bias.detach(),), allocate=allocate)
        self.memory = self._packed.memory

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        return linear(rows, self._packed)

    def dense(self) -> torch.Tensor:
        return self._packed.unpacked()[0]


class OneDnnWeight:
    """A weight in the memory layout of oneDNN, on huge pages if possible.

    Args:
        weight: [outputs, inputs], any strides, float32 or bfloat16, on the CPU.
        bias: [outputs], or None for none.

    Raises:
        RuntimeError, AttributeError, NotImplementedError: if this PyTorch cannot pack it; see `packing_obstacle`.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACK_ROWS)
        self._bias = bias
        # oneDNN allocates the memory itself.
        collapse(torch.ops.mkldnn.data_ptr(self._packed), torch.ops.mkldnn._nbytes(self._packed))

    def times(self, rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, self._bias, "none", [], "")
        return found

    def dense(self) -> torch.Tensor:
        return self._packed.to_dense()


def make_weight(
    form: Form, weight: torch.Tensor, bias: torch.Tensor | None, pages: HugePages, *, old: Weight | None = None
) -> Weight:
    """Return a weight in a form.

    Args:
        form: of the weight.
        weight: [outputs, inputs], any strides.
        bias: [outputs], or None for none.
        pages: memory for a weight in the native form.
        old: an earlier weight of the same form and shape, which is not used any more: its memory is written again.
    """
    if form == "native":
        if isinstance(old, NativeWeight):
            return NativeWeight(weight, bias, lambda _: old.memory)
        return NativeWeight(weight, bias, lambda size: pages.empty((size,), torch.uint8))
    return OneDnnWeight(weight, bias) if form == "packed" else PlainWeight(weight, bias)


def packed_forms(dtype: torch.dtype) -> tuple[Form, ...]:
    """Return the packed forms that this machine has for a dtype, the preferred one first."""
    native: tuple[Form, ...] = ("native",) if dtype in DTYPES and kernels() is not None else ()
    return native if packing_obstacle(dtype) else (*native, "packed")


@cache
def packing_obstacle(dtype: torch.dtype) -> str:
    """Return why oneDNN cannot pack weights of a dtype here; "" if it can. Found by a trial with a small weight."""
    if dtype not in DTYPES:
        return f"{str(dtype).removeprefix('torch.')} weights cannot be packed"
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return "this PyTorch has no oneDNN"
    generator = torch.Generator("cpu").manual_seed(0)
    options: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    weight, rows = torch.randn(16, 32, **options).to(dtype), torch.randn(3, 32, **options).to(dtype)
    try:
        with torch.no_grad():
            found, expected = OneDnnWeight(weight, None).times(rows), F.linear(rows, weight)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        name = str(dtype).removeprefix("torch.")
        return f"oneDNN packing of {name} weights does not run here: {type(error).__name__}"
    tolerance = 32 * torch.finfo(dtype).eps * float(expected.abs().max())
    return "" if torch.allclose(found, expected, atol=tolerance, rtol=0) else "oneDNN packing gives other results here"

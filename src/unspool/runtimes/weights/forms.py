"""The forms of a linear layer's weight: plain, packed by oneDNN, or packed for our kernels.

Owns how each form is made, multiplied and read back. Does not know which form a layer has (autotune.py), or modules.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Final, Literal, Protocol, TypeAlias

import torch
import torch.nn.functional as F

from unspool.machine.huge_pages import HugePages, collapse
from unspool.tuning import PACK_ROWS

Form: TypeAlias = Literal["plain", "packed"]

DTYPES: Final = (torch.float32, torch.bfloat16)
"""The dtypes that can be packed."""


class Weight(Protocol):
    """A weight in one form."""

    def times(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """Return rows @ weight.T + bias. rows: [..., inputs] --> [..., outputs]"""
        ...

    def dense(self) -> torch.Tensor:
        """Return the plain weight, bit for bit. --> [outputs, inputs]"""
        ...


class PlainWeight:
    """A plain weight, multiplied by `torch.nn.functional.linear`.

    Args:
        weight: [outputs, inputs]. Not copied.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def times(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        return F.linear(rows, self._weight, bias)

    def dense(self) -> torch.Tensor:
        return self._weight


class OneDnnWeight:
    """A weight in the memory layout of oneDNN, on huge pages if possible.

    Args:
        weight: [outputs, inputs], any strides, float32 or bfloat16, on the CPU.

    Raises:
        RuntimeError, AttributeError, NotImplementedError: if this PyTorch cannot pack it; see `packing_obstacle`.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed: torch.Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACK_ROWS)
        # oneDNN allocates the memory itself.
        collapse(torch.ops.mkldnn.data_ptr(self._packed), torch.ops.mkldnn._nbytes(self._packed))

    def times(self, rows: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        found: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._packed, bias, "none", [], "")
        return found

    def dense(self) -> torch.Tensor:
        return self._packed.to_dense()


def make_weight(form: Form, weight: torch.Tensor, pages: HugePages) -> Weight:
    """Return a weight [outputs, inputs] in a form; its memory comes from `pages` if it is ours to allocate."""
    return OneDnnWeight(weight) if form == "packed" else PlainWeight(weight)


def packed_forms(dtype: torch.dtype) -> tuple[Form, ...]:
    """Return the packed forms that this machine has for a dtype, the preferred one first."""
    return () if packing_obstacle(dtype) else ("packed",)


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
            found, expected = OneDnnWeight(weight).times(rows, None), F.linear(rows, weight)
    except (RuntimeError, AttributeError, NotImplementedError) as error:
        name = str(dtype).removeprefix("torch.")
        return f"oneDNN packing of {name} weights does not run here: {type(error).__name__}"
    tolerance = 32 * torch.finfo(dtype).eps * float(expected.abs().max())
    return "" if torch.allclose(found, expected, atol=tolerance, rtol=0) else "oneDNN packing gives other results here"

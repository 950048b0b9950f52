"""Activations and gates: compared with float64, at each instruction set, alone and in company."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from tests.kernels.levels import everywhere
from tests.kernels.test_packed import made
from unspool.kernels.gate import gate
from unspool.kernels.library import kernels, obstacle

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

FUNCTIONS = {"relu": F.relu, "silu": F.silu, "gelu": F.gelu, "gelu_tanh": lambda x: F.gelu(x, approximate="tanh")}
NAMES = pytest.mark.parametrize("name", FUNCTIONS)


@NAMES
@pytest.mark.parametrize("width", [1, 31, 4000])
def test_activations_equal_those_in_float64(level: str, name: str, width: int) -> None:
    x = torch.cat([torch.linspace(-100, 100, 2000), torch.linspace(-6, 6, 2000)])[None, :width]
    expected = FUNCTIONS[name](x.double())
    assert ((gate(x, name) - expected).abs() <= 4e-7 * expected.abs().clamp(min=1)).all()


@NAMES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_factor_multiplies_the_rounded_activation(level: str, name: str, dtype: torch.dtype) -> None:
    x, factor = made(3, 5, 100).to(dtype), made(3, 5, 100, seed=1).to(dtype)
    assert torch.equal(gate(x, name, factor), gate(x, name) * factor)


@NAMES
def test_a_row_has_the_same_bits_in_any_company_on_all_levels(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    x = made(70, 1000)
    found = everywhere(monkeypatch, lambda: [gate(x, name), torch.cat([gate(row, name) for row in x.split(1)])])
    assert all(torch.equal(each, found[0]) for each in found)


@NAMES
def test_numbers_that_are_not_finite(level: str, name: str) -> None:
    found = gate(torch.tensor([[torch.nan, torch.inf]]), name)
    assert found[0, 0].isnan() and found[0, 1] == torch.inf


def test_any_strides_are_read_and_other_tensors_refused() -> None:
    x = made(2, 64, 3).transpose(1, 2)
    assert torch.equal(gate(x, "silu", x), gate(x.contiguous(), "silu", x.contiguous()))
    wide = made(1, 5, 96, seed=3)
    for first, second in (wide.chunk(2, -1), (wide[0, :, 7:40], wide[0, :, 60:93])):
        assert torch.equal(gate(second, "silu", first), gate(second.contiguous(), "silu", first.contiguous()))
    assert gate(x[:0], "relu").shape == (0, 3, 64)
    with pytest.raises(ValueError, match=r"float32 or bfloat16 on the CPU, got torch.float64"):
        gate(x.double(), "relu")
    for factor in (x[:1], x.bfloat16()):
        with pytest.raises(ValueError, match=r"a factor must be torch.float32 \[2, 3, 64\]"):
            gate(x, "relu", factor)

"""LayerNorm: compared with float64, at each instruction set, alone and in company."""

from __future__ import annotations

import pytest
import torch

from tests.kernels.levels import everywhere
from tests.kernels.test_packed import made
from unspool.kernels.layer_norm import LayerNorm, layer_norm
from unspool.kernels.library import kernels, obstacle

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

WIDTHS = (1, 7, 31, 32, 64, 100, 768, 4099)


def norm_of(width: int, dtype: torch.dtype = torch.float32) -> tuple[LayerNorm, torch.Tensor, torch.Tensor]:
    weight, bias = (made(width, seed=seed).to(dtype) for seed in (1, 2))
    return LayerNorm(weight, bias, width, 1e-5, dtype), weight, bias


def expected(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.layer_norm(x.double(), x.shape[-1:], weight.double(), bias.double(), 1e-5)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_it_equals_that_in_float64(level: str, width: int, shift: float) -> None:
    norm, weight, bias = norm_of(width)
    x = made(5, width) * 3 + shift
    error = 2e-6 if shift == 0 else 2e-4
    torch.testing.assert_close(layer_norm(x, norm).double(), expected(x, weight, bias), atol=error, rtol=error)


@pytest.mark.parametrize("width", WIDTHS)
def test_bfloat16_rounds_the_result_alone(level: str, width: int) -> None:
    norm, weight, bias = norm_of(width, torch.bfloat16)
    x = made(5, width).bfloat16()
    torch.testing.assert_close(layer_norm(x, norm).double(), expected(x, weight, bias), atol=1e-5, rtol=2**-8)


@pytest.mark.parametrize("width", WIDTHS)
def test_a_row_has_the_same_bits_in_any_company_on_all_levels(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    x = made(70, width)

    def results() -> tuple[torch.Tensor, torch.Tensor]:
        norm, _, _ = norm_of(width)
        return layer_norm(x, norm), torch.cat([layer_norm(row, norm) for row in x.split(1)])

    found = everywhere(monkeypatch, results)
    assert all(torch.equal(each, found[0]) for each in found)


def test_any_strides_and_dimensions_and_no_parameters() -> None:
    norm = LayerNorm(None, None, 64, 1e-5, torch.float32)
    x = made(2, 64, 3).transpose(1, 2)
    found = layer_norm(x, norm)
    assert found.is_contiguous() and torch.equal(found, layer_norm(x.contiguous(), norm))
    torch.testing.assert_close(found.double(), expected(x, torch.ones(64), torch.zeros(64)), atol=2e-6, rtol=2e-6)
    assert layer_norm(x[:0], norm).shape == (0, 3, 64)


def test_a_row_that_is_not_finite_stays_alone() -> None:
    norm, _, _ = norm_of(64)
    x = made(3, 64)
    x[1, 7] = torch.inf
    found = layer_norm(x, norm)
    assert not found[1].isfinite().any() and torch.equal(found[::2], layer_norm(x[::2], norm))


def test_other_tensors_are_refused() -> None:
    norm, _, _ = norm_of(16)
    for x in (made(2, 15), made(2, 16).bfloat16()):
        with pytest.raises(ValueError, match=r"a norm of torch.float32 \[..., 16\]"):
            layer_norm(x, norm)

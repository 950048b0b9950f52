"""Each form of a weight against the plain product."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.weights import forms
from unspool.runtimes.weights.forms import DTYPES, Form, OneDnnWeight, make_weight, packed_forms, packing_obstacle


@pytest.fixture
def fresh_obstacles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "packing_obstacle", forms.packing_obstacle.__wrapped__)


def every_form(dtype: torch.dtype) -> tuple[Form, ...]:
    return ("plain", *packed_forms(dtype))


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 33])
@pytest.mark.parametrize("size", [(24, 7), (300, 500)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@torch.inference_mode()
def test_every_form_gives_the_plain_product(dtype: torch.dtype, size: tuple[int, int], rows: int) -> None:
    torch.manual_seed(0)
    width, height = size
    transposed = torch.randn(width, height).to(dtype)
    bias = torch.randn(height).to(dtype)
    inputs = torch.randn(1, rows, 2 * width).to(dtype)[..., ::2]
    expected = F.linear(inputs.float(), transposed.T.float(), bias.float())
    tolerance = 1e-4 if dtype == torch.float32 else 0.3
    for form in every_form(dtype):
        weight = make_weight(form, transposed.T, bias, HugePages())
        found = weight.times(inputs)
        assert found.dtype == dtype and found.shape == expected.shape
        torch.testing.assert_close(found.float(), expected, atol=tolerance, rtol=1e-2)
        without = make_weight(form, transposed.T, None, HugePages()).times(inputs)
        torch.testing.assert_close(without.float(), expected - bias.float(), atol=tolerance, rtol=1e-2)
        assert torch.equal(weight.dense(), transposed.T), f"{form} keeps every bit"


def test_a_dtype_that_cannot_be_packed_is_named() -> None:
    assert packing_obstacle(torch.float16) == "float16 weights cannot be packed"
    assert packed_forms(torch.float16) == ()


@pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_native_form_comes_first_and_rows_keep_their_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packed_forms(dtype)[0] == "native"
    weight = make_weight("native", torch.randn(300, 500).to(dtype), torch.randn(300).to(dtype), HugePages())
    inputs = torch.randn(70, 500).to(dtype)
    together = weight.times(inputs)
    for start, rows in ((0, 1), (3, 1), (0, 2), (5, 17), (6, 64)):
        assert torch.equal(weight.times(inputs[start : start + rows]), together[start : start + rows])
    monkeypatch.setenv(VARIABLE, "off")
    assert "native" not in packed_forms(dtype)


@pytest.mark.usefixtures("fresh_obstacles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_error_of_onednn_is_an_obstacle_of_that_dtype(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN limited to AVX2 refuses bfloat16, and packs float32."""
    make = OneDnnWeight.__init__

    def refusing(self: OneDnnWeight, weight: torch.Tensor, bias: None) -> None:
        if weight.dtype == dtype:
            raise RuntimeError("mkldnn_reorder_linear_weight: bf16 path needs the cpu support avx512bw")
        make(self, weight, bias)

    monkeypatch.setattr(OneDnnWeight, "__init__", refusing)
    name = str(dtype).removeprefix("torch.")
    assert forms.packing_obstacle(dtype) == f"oneDNN packing of {name} weights does not run here: RuntimeError"
    assert "packed" not in packed_forms(dtype)
    assert all("does not run" not in forms.packing_obstacle(other) for other in DTYPES if other != dtype)


@pytest.mark.usefixtures("fresh_obstacles")
def test_another_result_is_an_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OneDnnWeight, "__init__", lambda *_: None)
    monkeypatch.setattr(OneDnnWeight, "times", lambda self, rows: torch.zeros(3, 16))
    assert forms.packing_obstacle(torch.float32) == "oneDNN packing gives other results here"
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert forms.packing_obstacle(torch.float32) == "this PyTorch has no oneDNN"

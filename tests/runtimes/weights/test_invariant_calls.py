"""Elementwise functions give a number the same bits wherever it stands, and products a row."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.activations import ACT2FN

from unspool.runtimes.weights.invariant_calls import InvariantCalls
from unspool.runtimes.weights.tanh_gelu import TanhGELU

_ACTIVATIONS = {name: ACT2FN[name] for name in ("gelu_new", "gelu_pytorch_tanh", "silu", "quick_gelu")}
_ACTIVATIONS["TanhGELU"] = TanhGELU()
_FUNCTIONS = {"F.silu": F.silu, "F.gelu": F.gelu, "tanh": torch.tanh, "cos": torch.Tensor.cos, **_ACTIVATIONS}


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("function", _FUNCTIONS.values(), ids=_FUNCTIONS)
def test_a_row_has_the_same_bits_in_any_company(
    function: Callable[[torch.Tensor], torch.Tensor], dtype: torch.dtype, threads: int
) -> None:
    numbers = torch.randn(1500, 37, generator=torch.Generator().manual_seed(0)).to(dtype) * 3
    torch.set_num_threads(threads)
    try:
        with InvariantCalls(row_by_row=False):
            whole = function(numbers)
            assert torch.equal(function(numbers.T.contiguous().T), whole)
            for start, stop in ((0, 1), (7, 8), (3, 40), (1, 1500)):
                assert torch.equal(function(numbers[start:stop]), whole[start:stop])
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(whole, function(numbers))


def test_other_functions_and_options_pass_through() -> None:
    numbers: Any = torch.randn(5, 7)
    with InvariantCalls(row_by_row=False):
        assert torch.equal(numbers + 1, numbers.add(1))
        torch.testing.assert_close(F.softplus(numbers, beta=2.0), torch.log1p((2 * numbers).exp()) / 2)
        assert F.silu(numbers[:0]).shape == (0, 7)


@torch.no_grad()
def test_row_by_row_gives_the_same_up_to_rounding() -> None:
    rows, weight, bias = torch.randn(2, 5, 8), torch.randn(3, 8), torch.randn(3)
    with InvariantCalls(row_by_row=True):
        torch.testing.assert_close(F.linear(rows, weight, bias), rows @ weight.T + bias)
        torch.testing.assert_close(torch.addmm(bias, rows[0], weight.T), rows[0] @ weight.T + bias)
        assert F.linear(rows[:, :0], weight, bias).shape == (2, 0, 3)

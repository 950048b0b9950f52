"""The logsumexp of rows: compared with float64, at each instruction set, with extreme scores, alone and in company."""

import math

import pytest
import torch

from tests.kernels.levels import HERE
from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.kernels.log_norm import log_norm

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

SIZES = (1, 5, 31, 32, 33, 2048, 2049, 4127, 50257)


def made(rows: int, size: int, scale: float = 8.0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) * scale


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 8.0, 1e4, 1e30])
def test_it_equals_that_in_float64(level, size, scale):
    scores = made(3, size, scale)
    expected = scores.double().logsumexp(-1)
    torch.testing.assert_close(log_norm(scores).double(), expected, rtol=1.5e-7, atol=1.5e-7)


@pytest.mark.parametrize("size", SIZES)
def test_a_row_has_the_same_bits_in_any_company(level, size):
    scores = made(9, size)
    whole = log_norm(scores)
    for start, stop in ((0, 1), (8, 9), (2, 7)):
        assert torch.equal(log_norm(scores[start:stop]), whole[start:stop])
    strided = torch.cat([scores, made(9, 7)], 1)[:, :size]
    assert torch.equal(log_norm(strided), whole)


@pytest.mark.parametrize("size", SIZES)
def test_all_instruction_sets_give_the_same_bits(monkeypatch, size):
    scores, found = made(4, size), []
    for name in HERE:
        monkeypatch.setenv(VARIABLE, name)
        if kernels() is not None:
            found.append(log_norm(scores))
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("place", [0, 31, 32, 69])
def test_scores_that_are_not_finite(level, place):
    scores = made(5, 70)
    scores[1:, place] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    scores[4] = -math.inf
    found = log_norm(scores)
    assert found[0].isfinite()
    assert found[1].isnan()
    assert found[2] == math.inf
    torch.testing.assert_close(found[3].double(), scores[3].double().logsumexp(-1))
    assert found[4] == -math.inf


def test_other_tensors_are_left_to_pytorch():
    scores = made(2, 40)
    assert log_norm(scores.double()) is None
    assert log_norm(scores.T.contiguous().T) is None
    assert log_norm(scores.requires_grad_()) is None
    assert log_norm(made(0, 40)).shape == (0,)

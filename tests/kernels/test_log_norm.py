"""The logsumexp and the greatest score of rows: compared with PyTorch, at each instruction set, with extreme scores."""

import math

import pytest
import torch

from tests.kernels.levels import everywhere
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.log_norm import log_norm

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

SIZES = (1, 5, 31, 32, 33, 2048, 2049, 4127, 50257)


def made(rows: int, size: int, scale: float = 8.0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) * scale


def are_equal(found, expected) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 8.0, 1e4, 1e30])
def test_it_equals_that_in_float64(level, size, scale):
    scores = made(3, size, scale)
    expected = scores.double().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(log_norm(scores).norm.double(), expected, rtol=1.5e-7, atol=1.5e-7)


@pytest.mark.parametrize("size", SIZES)
def test_the_greatest_score_is_the_first_of_equals(level, size):
    scores = made(40, size).round()
    for row in range(40):
        scores[row, row * size // 40 :: 7] = 50.0
    found = log_norm(scores)
    assert found.ids[:, 0].tolist() == scores.numpy().argmax(1).tolist()
    assert torch.equal(found.greatest, scores.gather(1, found.ids))


@pytest.mark.parametrize("size", SIZES)
def test_a_row_has_the_same_bits_in_any_company(level, size):
    scores = made(9, size)
    whole = log_norm(scores)
    for start, stop in ((0, 1), (8, 9), (2, 7)):
        assert are_equal(log_norm(scores[start:stop]), [each[start:stop] for each in whole])
    strided = torch.cat([scores, made(9, 7)], 1)[:, :size]
    assert are_equal(log_norm(strided), whole)


@pytest.mark.parametrize("size", SIZES)
def test_all_instruction_sets_give_the_same_bits(monkeypatch, size):
    scores = made(4, size)
    found = everywhere(monkeypatch, lambda: [torch.cat([each.double() for each in log_norm(scores)], 1)])
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("place", [0, 31, 32, 69])
def test_scores_that_are_not_finite(level, place):
    scores = made(5, 70)
    scores[1:, place] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    scores[4] = -math.inf
    norm, greatest, ids = log_norm(scores)
    assert norm[0].isfinite()
    assert norm[1].isnan()
    assert norm[2] == math.inf
    torch.testing.assert_close(norm[3, 0].double(), scores[3].double().logsumexp(-1))
    assert norm[4] == -math.inf
    assert greatest[1] == scores[1][~scores[1].isnan()].max() and scores[1, ids[1, 0]] == greatest[1]
    assert (greatest[2], ids[2]) == (math.inf, place)
    assert (greatest[4], ids[4]) == (-math.inf, 0)


def test_other_tensors_are_left_to_pytorch():
    scores = made(2, 40)
    assert log_norm(scores.double()) is None
    assert log_norm(scores.T.contiguous().T) is None
    assert log_norm(scores.requires_grad_()) is None
    assert [each.shape for each in log_norm(made(0, 40))] == [(0, 1)] * 3

"""The best scores and the logsumexp of rows: compared with PyTorch, at each instruction set, with extreme scores."""

import math

import pytest
import torch

from tests.kernels.levels import everywhere
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.top_k import LONGEST_LIST, log_norm, top_k

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

SIZES = (1, 5, 31, 32, 33, 2048, 2049, 4127, 50257)


def made(rows: int, size: int, scale: float = 8.0) -> torch.Tensor:
    return torch.randn(rows, size, generator=torch.Generator().manual_seed(size)) * scale


def figures(scores: torch.Tensor) -> list[torch.Tensor]:
    """Return the logsumexp of each row, its best score and that score's id, and a list of the best scores."""
    norm, best = log_norm(scores)
    return [norm, *best, *top_k(scores, min(14, scores.shape[1]))]


def are_equal(found, expected) -> bool:
    return all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def sorted_best(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k best scores of each row by a stable sort: of equal scores the lowest id comes first."""
    values, ids = scores.sort(dim=1, descending=True, stable=True)
    return values[:, :k], ids[:, :k]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [0.0, 1e-3, 8.0, 1e4, 1e30])
def test_it_equals_that_in_float64(level, size, scale):
    scores = made(3, size, scale)
    expected = scores.double().logsumexp(-1, keepdim=True)
    torch.testing.assert_close(log_norm(scores)[0].double(), expected, rtol=1.5e-7, atol=1.5e-7)


@pytest.mark.parametrize("size", SIZES)
def test_the_greatest_score_is_the_first_of_equals(level, size):
    scores = made(40, size).round()
    for row in range(40):
        scores[row, row * size // 40 :: 7] = 50.0
    _, best = log_norm(scores)
    assert best.ids[:, 0].tolist() == scores.numpy().argmax(1).tolist()
    assert torch.equal(best.values, scores.gather(1, best.ids))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("scale", [8.0, 1.0])
def test_the_list_is_sorted_and_ties_go_to_the_lowest_id(level, size, scale):
    scores = made(5, size, scale).round()
    for k in sorted({min(k, size) for k in (1, 2, 5, 14, LONGEST_LIST)}):
        assert are_equal(top_k(scores, k), sorted_best(scores, k)), k


@pytest.mark.parametrize("descending", [True, False])
def test_rows_in_order(level, descending):
    scores = made(3, 4127).sort(1, descending=descending).values
    assert are_equal(top_k(scores, 50), sorted_best(scores, 50))


@pytest.mark.parametrize("size", [1, 14, 40, 50257])
@pytest.mark.parametrize("num_allowed", [0, 1, 13])
def test_forbidden_scores_fill_a_list_without_naming_a_token_twice(level, size, num_allowed):
    scores = torch.full((2, size), -math.inf)
    allowed = torch.randperm(size, generator=torch.Generator().manual_seed(size))[:num_allowed]
    scores[:, allowed] = made(2, len(allowed)) if len(allowed) else 0.0
    scores[1, 0] = math.nan
    k = min(14, size)
    values, ids = top_k(scores, k)
    assert are_equal((values, ids), sorted_best(scores.nan_to_num(nan=-math.inf, neginf=-math.inf), k))
    assert all(len(set(row)) == k for row in ids.tolist())


@pytest.mark.parametrize("size", SIZES)
def test_a_row_has_the_same_bits_in_any_company(level, size):
    scores = made(9, size)
    whole = figures(scores)
    for start, stop in ((0, 1), (8, 9), (2, 7)):
        assert are_equal(figures(scores[start:stop]), [each[start:stop] for each in whole])
    strided = torch.cat([scores, made(9, 7)], 1)[:, :size]
    assert are_equal(figures(strided), whole)


@pytest.mark.parametrize("size", SIZES)
def test_all_instruction_sets_give_the_same_bits(monkeypatch, size):
    scores = made(4, size)
    found = everywhere(monkeypatch, lambda: [torch.cat([each.double() for each in figures(scores)], 1)])
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("place", [0, 31, 32, 69])
def test_scores_that_are_not_finite(level, place):
    scores = made(5, 70)
    scores[1:, place] = torch.tensor([math.nan, math.inf, -math.inf, 0.0])
    scores[4] = -math.inf
    norm, (greatest, ids) = log_norm(scores)
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
    for other in (scores.double(), scores.T.contiguous().T, scores.clone().requires_grad_()):
        assert log_norm(other) is None and top_k(other, 2) is None
    assert top_k(made(2, 2 * LONGEST_LIST), LONGEST_LIST + 1) is None
    norm, best = log_norm(made(0, 40))
    assert [each.shape for each in (norm, *best, *top_k(made(0, 40), 3))] == [(0, 1)] * 3 + [(0, 3)] * 2

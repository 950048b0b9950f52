"""Finding and keeping the best tokens of a row."""

from __future__ import annotations

import pytest
import torch

from unspool.processors.rows import best, column, first_best, keep_best, log_norm, row_sum, survivors


@pytest.mark.parametrize("vocab", [1, 7, 63, 64, 65, 1000, 4096, 5003])
@pytest.mark.parametrize("k", [1, 2, 15, 64, 100_000])
@pytest.mark.parametrize("levels", [None, 3])
def test_best_lists_the_highest_scores_and_where_they_stand(vocab: int, k: int, levels: int | None):
    generator = torch.Generator().manual_seed(vocab + k)
    scores = torch.randn(3, vocab, generator=generator)
    if levels:
        scores = (scores * levels).round()
    scores[1, ::2] = float("-inf")
    found = best(scores, k)
    assert torch.equal(found.values, scores.sort(-1, descending=True).values[:, :k])
    assert torch.equal(scores.gather(1, found.ids), found.values)
    assert all(len(set(ids)) == len(ids) for ids in found.ids.tolist()), "no token is listed twice"


@pytest.mark.parametrize(("ties", "expected"), [(False, [1, 2]), (True, [1, 2, 4])])
def test_a_tie_behind_the_last_kept_score_goes_to_the_lowest_token(ties: bool, expected: list[int]):
    scores = torch.tensor([[0.0, 9.0, 5.0, 1.0, 5.0]])
    result = keep_best(scores, best(scores, 3), torch.tensor([[2]]), ties=ties)
    assert (result[0] > -torch.inf).nonzero()[:, 0].tolist() == expected


def test_the_sum_of_a_row_is_the_same_alone_and_in_company():
    scores = torch.randn(3, 50_000, generator=torch.Generator().manual_seed(0))
    together = row_sum(scores)
    assert all(torch.equal(row_sum(scores[row : row + 1])[0], together[row]) for row in range(3))


def test_a_column_holds_one_number_for_each_row():
    assert column([1, 2], torch.zeros(2, 5)).tolist() == [[1.0], [2.0]]


def test_the_logsumexp_of_a_row_is_the_same_alone_and_in_company():
    scores = torch.randn(64, 40_000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 9, 64)[:, None]
    scores[0] = float("-inf")
    scores[1, 5:] = float("-inf")
    together = log_norm(scores)
    torch.testing.assert_close(together, scores.logsumexp(-1))
    assert all(torch.equal(log_norm(scores[row : row + 1])[0], together[row]) for row in range(64))


def test_the_logsumexp_is_exact_to_rounding_and_tells_rows_that_are_no_distributions():
    scores = torch.randn(6, 50_257, generator=torch.Generator().manual_seed(1))
    scores[0] *= 6
    scores[1] = 0.0
    scores[1, 7] = 11.0  # half of the mass in one place, half in very many: a running sum rounds it away
    scores[2, 50:] = float("-inf")
    scores[3] = float("-inf")
    scores[4, 9] = float("nan")
    scores[5, 9] = float("inf")
    found = log_norm(scores)
    expected = scores.double().logsumexp(-1)
    assert (found[:3].double() - expected[:3]).abs().max() < 4e-6
    assert found[3] == float("-inf") and found[4].isnan() and found[5] == float("inf")


def test_the_first_of_the_best_is_the_lowest_id():
    scores = torch.tensor([[0.0, 2.0, 1.0, 2.0], [float("-inf")] * 4])
    found = first_best(scores)
    assert found.ids.tolist() == [[1], [0]] and found.values.tolist() == [[2.0], [float("-inf")]]


@pytest.mark.parametrize("vocab", [5, 40, 1000, 5003])
def test_survivors_are_all_allowed_tokens_or_none_where_there_are_more(vocab: int):
    scores = torch.full((3, vocab), float("-inf"))
    for row, places in enumerate(([vocab - 1], [0, 2, 3], [1, vocab - 2, vocab - 3])):
        scores[row, places] = torch.arange(len(places)).float()
    found = survivors(scores, 3)
    assert found is not None
    for row in range(3):
        listed = found.ids[row][found.values[row] > float("-inf")]
        assert sorted(listed.tolist()) == (scores[row] > float("-inf")).nonzero()[:, 0].tolist()
    assert survivors(scores, 2) is None
    scores[0, :4] = 1.0  # four in one block
    assert survivors(scores, 3) is None


def test_a_column_that_is_asked_for_again_is_not_made_again():
    scores = torch.zeros(2, 5)
    assert column([0.5, 2.0], scores) is column([0.5, 2.0], scores)
    assert column([1.0, 2.0], scores, torch.int64).dtype == torch.int64

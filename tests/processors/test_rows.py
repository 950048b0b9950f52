"""Finding and keeping the best tokens of a row."""

from __future__ import annotations

import pytest
import torch

from unspool.processors.rows import best, column, keep_best, log_norm, row_sum


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

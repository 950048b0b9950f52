"""Selection: order, ties, draws without replacement."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch

from unspool.engine import select
from unspool.noise import NoiseKey

INF = float("inf")


@pytest.mark.parametrize(
    ("row", "k", "tokens"),
    [
        ([0.1, 0.5, 0.4], 2, [1, 2]),
        ([0.5, 0.5, 0.5], 2, [0, 1]),
        ([0.1, 0.5, 0.5, 0.5], 2, [1, 2]),
        ([0.9, 0.1, 0.1, 0.1], 2, [0, 1]),
        ([0.1, 0.9, -INF, -INF], 4, [1, 0]),
        ([0.1, 0.9], 5, [1, 0]),
        ([-INF, -INF, 0.0], 1, [2]),
    ],
)
def test_top_is_best_first_with_ties_to_the_lowest_id(row: list[float], k: int, tokens: list[int]) -> None:
    assert select.top(torch.tensor([row]), k)[0].tokens == tokens


def test_top_of_many_tied_tokens_is_the_lowest_ids_at_any_size() -> None:
    scores = torch.zeros(3, 50_000)
    scores[1, 4000:] = 1.0
    scores[2, ::7] = 2.0
    picked = select.top(scores, 4)
    assert [each.tokens for each in picked] == [[0, 1, 2, 3], [4000, 4001, 4002, 4003], [0, 7, 14, 21]]


def test_draws_follow_the_distribution() -> None:
    probabilities = torch.tensor([0.05, 0.15, 0.3, 0.5])
    keys = [NoiseKey(seed, 0, 3) for seed in range(8000)]
    drawn = Counter(each.tokens[0] for each in select.perturbed(probabilities.log().expand(8000, 4), keys, 1))
    statistic = sum((drawn[t] - 8000 * p) ** 2 / (8000 * p) for t, p in enumerate(probabilities.tolist()))
    assert statistic < 27.9  # chi-square, 3 degrees of freedom: exceeded with probability 4e-6


def test_perturbed_draws_without_replacement_in_the_exact_order() -> None:
    """P(a, b) = p_a * p_b / (1 - p_a)."""
    p = [0.1, 0.2, 0.7]
    keys = [NoiseKey(seed, 0, 3) for seed in range(8000)]
    drawn = Counter(tuple(each.tokens) for each in select.perturbed(torch.tensor(p).log().expand(8000, 3), keys, 2))
    statistic = 0.0
    for a, b in permutations(range(3), 2):
        expected = 8000 * p[a] * p[b] / (1 - p[a])
        statistic += (drawn[a, b] - expected) ** 2 / expected
    assert statistic < 34  # chi-square, 5 degrees of freedom: exceeded with probability 2.4e-6


def test_forbidden_tokens_are_never_drawn() -> None:
    scores = torch.full((200, 30), -INF)
    scores[:, 11] = -50.0
    keys = [NoiseKey(seed, 0, 0) for seed in range(200)]
    assert all(each.tokens == [11] for each in select.perturbed(scores, keys, 3))


def test_noise_for_survivors_alone_draws_what_noise_for_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scores = torch.randn(16, 5000)
    scores[scores < 1.5] = -INF
    keys = [NoiseKey(seed, 2, 9) for seed in range(16)]
    few = select.perturbed(scores, keys, 5)
    monkeypatch.setattr(select, "FEW", 0)
    assert select.perturbed(scores, keys, 5) == few

"""Selection: order, ties, draws without replacement."""

from __future__ import annotations

from collections import Counter
from itertools import permutations

import pytest
import torch

from unspool.engine import sampler as select
from unspool.noise import NoiseKey, gumbel

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
    keys = [NoiseKey(seed, 0, 0, 3) for seed in range(8000)]
    drawn = Counter(each.tokens[0] for each in select.perturbed(probabilities.log().expand(8000, 4), keys, 1))
    statistic = sum((drawn[t] - 8000 * p) ** 2 / (8000 * p) for t, p in enumerate(probabilities.tolist()))
    assert statistic < 27.9  # chi-square, 3 degrees of freedom: exceeded with probability 4e-6


def test_perturbed_draws_without_replacement_in_the_exact_order() -> None:
    """P(a, b) = p_a * p_b / (1 - p_a)."""
    p = [0.1, 0.2, 0.7]
    keys = [NoiseKey(seed, 0, 0, 3) for seed in range(8000)]
    drawn = Counter(tuple(each.tokens) for each in select.perturbed(torch.tensor(p).log().expand(8000, 3), keys, 2))
    statistic = 0.0
    for a, b in permutations(range(3), 2):
        expected = 8000 * p[a] * p[b] / (1 - p[a])
        statistic += (drawn[a, b] - expected) ** 2 / expected
    assert statistic < 34  # chi-square, 5 degrees of freedom: exceeded with probability 2.4e-6


def test_forbidden_tokens_are_never_drawn() -> None:
    scores = torch.full((200, 30), -INF)
    scores[:, 11] = -50.0
    keys = [NoiseKey(seed, 0, 0, 0) for seed in range(200)]
    assert all(each.tokens == [11] for each in select.perturbed(scores, keys, 3))


def test_noise_for_survivors_alone_draws_what_noise_for_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    scores = torch.randn(16, 5000)
    scores[scores < 1.5] = -INF
    keys = [NoiseKey(seed, 0, 2, 9) for seed in range(16)]
    few = select.perturbed(scores, keys, 5)
    monkeypatch.setattr(select, "FEW_ALLOWED_TOKENS", 0)
    assert select.perturbed(scores, keys, 5) == few


def hard_rows(vocab: int, seed: int) -> torch.Tensor:
    """Rows that are peaked, flat, full of ties, and masked more or less, one of each kind."""
    rows = torch.randn(7, vocab, generator=torch.Generator().manual_seed(seed))
    rows[0] *= 20
    rows[1] = 0.0
    rows[2] = rows[2].round()
    rows[3] = rows[3].to(torch.bfloat16).float()
    rows[4, 70:] = -INF
    rows[5, 3:] = -INF
    rows[6, : vocab // 2] = -INF
    return rows


def in_order(values: torch.Tensor, k: int) -> tuple[list[int], list[float]]:
    """Sort one row the plain way: best first, lowest token first, without what is forbidden."""
    allowed = [(-value, token) for token, value in enumerate(values.tolist()) if value > -INF]
    return [token for _, token in sorted(allowed)[:k]], [-value for value, _ in sorted(allowed)[:k]]


@pytest.mark.parametrize("vocab", [6, 63, 300, 5003])
@pytest.mark.parametrize("k", [1, 2, 7, 70])
def test_top_is_what_sorting_says(vocab: int, k: int) -> None:
    scores = hard_rows(vocab, k)
    assert [tuple(each) for each in select.top(scores, k)] == [in_order(row, k) for row in scores]


@pytest.mark.parametrize("vocab", [6, 63, 300, 5003])
@pytest.mark.parametrize("k", [1, 5])
def test_draws_are_the_largest_of_score_and_noise_over_the_whole_vocabulary(vocab: int, k: int) -> None:
    scores = hard_rows(vocab, k)
    keys = [NoiseKey(seed, 0, 1, 4) for seed in range(len(scores))]
    expected = [in_order(row, k) for row in scores + gumbel(keys, torch.arange(vocab))]
    assert [tuple(each) for each in select.perturbed(scores, keys, k)] == expected
    for row, key in enumerate(keys):  # alone, few tokens may be allowed in all rows there are
        assert tuple(select.perturbed(scores[row : row + 1], [key], k)[0]) == expected[row]


def test_a_draw_from_more_rows_than_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.randn(11, 700, generator=torch.Generator().manual_seed(0))
    keys = [NoiseKey(seed, 0, 0, 0) for seed in range(11)]
    together = select.perturbed(scores, keys, 3)
    for work in (1, 3 * 700, 10 * 700):
        monkeypatch.setattr(select, "NOISE_TOKENS_PER_CALL", work)
        assert select.perturbed(scores, keys, 3) == together


@pytest.mark.parametrize("k", [1, 3])
def test_ties_that_only_the_shift_makes_go_to_the_lowest_id(k: int) -> None:
    # Steps of 2**-20 vanish where scores of size 100 are rounded.
    scores = 1.0 + torch.arange(4000)[None] * 2.0**-20
    log_norm_offset = torch.tensor([[101.0]])
    found = select.top_k_list(scores, k, log_norm_offset)
    values, tokens = found.values[0].tolist(), found.tokens[0].tolist()
    places = select.resolve_ties(values, tokens, k)
    picked = found.full_row_top_k(0, k).tokens if places is None else [tokens[place] for place in places]
    assert picked == in_order((scores - log_norm_offset)[0], k)[0] != in_order(scores[0], k)[0]

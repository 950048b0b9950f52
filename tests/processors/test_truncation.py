"""The truncations by rank, mass and distance: worked examples, ties and edges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.processors.support import applied, context, kept, one, state_of


def kept_scores(name: str, scores: list[float], **request) -> list[int]:
    return [token for token, score in enumerate(one(name, scores, **request)) if score > -torch.inf]


def test_worked_example_of_top_k():
    assert kept_scores("top_k", [1, 3, 2, 2, 0], top_k=2) == [1, 2, 3]


@pytest.mark.parametrize(
    ("top_k", "expected"), [(1, [1, 2]), (2, [1, 2]), (3, [0, 1, 2, 4]), (5, [0, 1, 2, 3, 4]), (99, [0, 1, 2, 3, 4])]
)
def test_top_k_keeps_all_scores_equal_to_the_kth(top_k: int, expected: list[int]):
    assert kept_scores("top_k", [1, 3, 3, 0, 1], top_k=top_k) == expected


def test_worked_example_of_top_p():
    probs = (0.5, 0.25, 0.125, 0.125)
    assert kept("top_p", probs, top_p=0.75) == [0, 1]
    assert kept("top_p", probs, top_p=0.76) == [0, 1, 2]


@pytest.mark.parametrize(
    ("top_p", "least", "expected"),
    [
        (1e-6, 1, [2]),
        (0.49, 1, [2]),
        (0.5, 1, [2]),
        (0.51, 1, [0, 2]),
        (0.75, 1, [0, 2]),
        (0.99, 1, [0, 1, 2]),
        (1e-6, 2, [0, 2]),
        (1e-6, 4, [0, 1, 2]),
        (1e-6, 9, [0, 1, 2]),
    ],
)
def test_top_p_keeps_a_token_iff_less_than_p_stands_before_it(top_p: float, least: int, expected: list[int]):
    assert kept("top_p", (0.25, 0.25, 0.5, 0.0), top_p=top_p, min_tokens_to_keep=least) == expected


@given(
    st.lists(st.integers(-3, 3), min_size=1, max_size=40),
    st.floats(0.01, 0.99),
    st.integers(1, 4),
)
def test_top_p_equals_the_rule_read_aloud(scores: list[int], top_p: float, least: int):
    order = sorted(range(len(scores)), key=lambda token: (-scores[token], token))
    probs = torch.tensor(scores, dtype=torch.float64).softmax(-1).tolist()
    before, expected = 0.0, []
    for rank, token in enumerate(order):
        if abs(before - top_p) < 1e-6:
            return  # too near to call in float32
        if before < top_p or rank < least:
            expected.append(token)
        before += probs[token]
    assert kept_scores("top_p", scores, top_p=top_p, min_tokens_to_keep=least) == sorted(expected)


@pytest.mark.parametrize("vocab", [60, 64, 65, 1024, 1025, 9000])
@pytest.mark.parametrize("top_p", [0.3003, 0.9991])
def test_top_p_of_a_flat_row_keeps_the_lowest_ids_however_many(vocab: int, top_p: float):
    count = int((torch.arange(vocab) / vocab < top_p).sum())
    assert kept_scores("top_p", [0.0] * vocab, top_p=top_p) == list(range(count))


def test_top_p_takes_rows_that_need_one_token_and_rows_that_need_thousands_together():
    scores = torch.randn(3, 9000, generator=torch.Generator().manual_seed(0)) * torch.tensor([[20.0], [3.0], [0.1]])
    states = [state_of("top_p", context(vocab_size=9000, top_p=top_p)) for top_p in (0.5, 0.9, 0.95)]
    counts = (applied("top_p", states, scores) > -torch.inf).sum(-1).tolist()
    for row, top_p in enumerate((0.5, 0.9, 0.95)):
        probs = scores[row].double().softmax(-1).sort(descending=True).values
        assert counts[row] == int(((probs.cumsum(0) - probs) < top_p).sum())
    assert counts[0] < 64 < counts[1] < 1024 * 5 < counts[2]


def test_worked_example_of_min_p():
    assert kept("min_p", (0.5, 0.3, 0.15, 0.05), min_p=0.4) == [0, 1]


def test_min_p_of_one_keeps_the_best_and_its_equals():
    assert kept("min_p", (0.25, 0.5, 0.25), min_p=1.0) == [1]
    assert kept("min_p", (0.4, 0.4, 0.2), min_p=1.0) == [0, 1]


def test_worked_example_of_top_h():
    assert kept("top_h", (1 / 2, 1 / 4, 1 / 8, 1 / 8), top_h=0.6) == [0, 1]


def test_top_h_looks_at_the_hundred_best_alone():
    flat = [0.0] * 300
    assert len(kept_scores("top_h", flat, top_h=0.505)) == 50
    assert len(kept_scores("top_h", flat, top_h=0.505, min_tokens_to_keep=120)) == 120


def test_worked_example_of_top_n_sigma():
    assert kept_scores("top_n_sigma", [6, 2, 2, 2], top_n_sigma=2) == [0]
    assert kept_scores("top_n_sigma", [6, 2, 2, 2], top_n_sigma=3) == [0, 1, 2, 3]


def test_top_n_sigma_leaves_forbidden_scores_out_of_the_deviation_and_ignores_temperature():
    # The allowed scores 4, 2, 0 have deviation sqrt(8 / 3) = 1.63.
    scores = [4, -torch.inf, 2, 0]
    assert kept_scores("top_n_sigma", scores, top_n_sigma=1.2) == [0]
    assert kept_scores("top_n_sigma", scores, top_n_sigma=1.3) == [0, 2]
    assert kept_scores("top_n_sigma", [score / 0.1 for score in scores], top_n_sigma=1.3) == [0, 2]
    assert kept_scores("top_n_sigma", [-torch.inf, 1], top_n_sigma=1.0) == [1]

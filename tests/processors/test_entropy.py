"""Typical, epsilon and eta: worked examples and edges."""

from __future__ import annotations

import pytest
import torch

from tests.processors.support import applied, context, kept, state_of

PROBS = (0.6, 0.3, 0.1)


def test_worked_example_of_typical_p():
    assert kept("typical_p", PROBS, typical_p=0.2) == [1]
    assert kept("typical_p", PROBS, typical_p=0.5) == [0, 1]


def test_worked_example_of_epsilon_cutoff():
    assert kept("epsilon_cutoff", PROBS, epsilon_cutoff=0.2) == [0, 1]


def test_worked_example_of_eta_cutoff():
    assert kept("eta_cutoff", PROBS, eta_cutoff=0.09) == [0, 1, 2]
    assert kept("eta_cutoff", PROBS, eta_cutoff=0.25) == [0, 1]


def test_a_cutoff_above_every_probability_leaves_the_best():
    assert kept("epsilon_cutoff", PROBS, epsilon_cutoff=0.9) == [0]
    assert kept("epsilon_cutoff", PROBS, epsilon_cutoff=0.9, min_tokens_to_keep=2) == [0, 1]


@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_typical_p_of_a_large_vocabulary_equals_a_full_sort(spread: float):
    scores = torch.randn(2, 9000, generator=torch.Generator().manual_seed(0)) * spread
    state = state_of("typical_p", context(vocab_size=9000, typical_p=0.9))
    result = applied("typical_p", [state] * 2, scores) > -torch.inf
    logprobs = scores.double().log_softmax(-1)
    distance = (-logprobs - -(logprobs * logprobs.exp()).sum(-1, keepdim=True)).abs()
    order = distance.argsort(-1)
    mass = logprobs.exp().gather(1, order).cumsum(-1)
    for row in range(2):
        count = int((mass[row] < 0.9).sum()) + 1
        expected = set(order[row, :count].tolist())
        border = distance[row, order[row, count - 1]]
        for token in expected ^ set(result[row].nonzero()[:, 0].tolist()):
            assert abs(distance[row, token] - border) < 1e-5, "too far from the border for rounding"

"""Exclude Top Choices: worked example, exemptions, frequency of the draw."""

from __future__ import annotations

import torch

from tests.processors.support import context, kept, state_of
from unspool.processors import PROCESSORS
from unspool.protocols import RowKey

PROBS = (0.5, 0.3, 0.15, 0.05)


def test_worked_example_of_xtc():
    assert kept("xtc", PROBS, xtc_probability=1.0, xtc_threshold=0.1) == [2, 3]
    assert kept("xtc", PROBS, xtc_probability=1.0, xtc_threshold=0.4) == [0, 1, 2, 3]
    assert kept("xtc", PROBS, xtc_probability=1.0, xtc_threshold=0.1, xtc_exclude=(1,)) == [0, 1, 2, 3]


def test_the_least_top_choice_may_be_an_excluded_token():
    assert kept("xtc", PROBS, xtc_probability=1.0, xtc_threshold=0.1, xtc_exclude=(2,)) == [2, 3]


def test_tokens_equal_to_the_least_top_choice_stay():
    assert kept("xtc", (0.6, 0.2, 0.2), xtc_probability=1.0, xtc_threshold=0.1) == [1, 2]


def test_a_threshold_of_zero_spares_the_least_allowed_token_not_a_forbidden_one():
    assert kept("xtc", (0.6, 0.0, 0.4), xtc_probability=1.0, xtc_threshold=0.0) == [2]


def test_a_row_that_would_keep_too_few_tokens_stays():
    assert kept("xtc", PROBS, xtc_probability=1.0, xtc_threshold=0.1, min_tokens_to_keep=3) == [0, 1, 2, 3]


def test_it_strikes_as_often_as_asked_and_always_alike_for_the_same_key():
    """4,000 draws at 0.3: mean 1,200, deviation 29. Off by five deviations in one of 1.7 million seeds."""
    state = state_of("xtc", context(xtc_probability=0.3, vocab_size=4))
    keys = [RowKey(9, 0, output, position) for output in range(4) for position in range(1000)]
    scores = torch.tensor(PROBS).log().expand(len(keys), -1)
    struck = PROCESSORS["xtc"].apply([state] * len(keys), scores.clone(), keys)[:, 0] == -torch.inf
    assert abs(int(struck.sum()) - 1200) < 5 * 29
    backwards = PROCESSORS["xtc"].apply([state] * len(keys), scores.clone(), keys[::-1])[:, 0] == -torch.inf
    assert torch.equal(struck.flip(0), backwards)

"""Beam sampling draws without replacement from the joint distribution of all beams, under the request's own noise."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.toys import TABLE, mixing_toy, request, run_alone
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Output


def outputs(make: Callable[[], ToyRuntime], *prompt: int, num_beams: int = 2, **options: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, do_sample=True, num_beams=num_beams, **options))
    assert isinstance(found, tuple), found
    return found


def three_tokens() -> ToyRuntime:
    return ToyRuntime(lambda tokens: [0.5, 0.3, 0.2], 3)


def test_beam_sampling_worked_example() -> None:
    draws = 4000
    count = sum(outputs(three_tokens, 0, seed=seed, max_new_tokens=1)[0].token_ids == (0,) for seed in range(draws))
    expected = 1 - (0.3 * 0.2 / 0.7 + 0.2 * 0.3 / 0.8)
    assert expected == pytest.approx(0.8393, abs=1e-4)
    # Standard deviation of the count 23.2: six of them, false alarm 2e-9.
    assert abs(count - draws * expected) < 140


def test_two_steps_follow_the_exact_enumeration() -> None:
    """Two beams over two tokens: both beginnings go on, and the second step draws two of their four continuations."""
    table = {0: [0.7, 0.3], 1: [0.4, 0.6]}
    joint = {(a, b): table[0][a] * table[a][b] for a, b in itertools.product(range(2), repeat=2)}
    exact: Counter[frozenset[tuple[int, ...]]] = Counter()
    for a, b in itertools.permutations(joint, 2):
        exact[frozenset((a, b))] += joint[a] * joint[b] / (1 - joint[a])  # type: ignore[assignment]
    draws = 4000
    found: Counter[frozenset[tuple[int, ...]]] = Counter()
    for seed in range(draws):
        pair = outputs(lambda: ToyRuntime(table, 2), 0, seed=seed, max_new_tokens=2, num_return_sequences=2)
        found[frozenset(output.token_ids for output in pair)] += 1
    assert set(found) <= set(exact)
    statistic = sum((found[pair] - draws * p) ** 2 / (draws * p) for pair, p in exact.items())
    assert statistic < 34  # chi-square, 5 degrees of freedom: exceeded with probability 2.4e-6


def test_the_same_seed_draws_the_same_and_another_draws_apart() -> None:
    options: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 3, "max_new_tokens": 8}
    one = outputs(mixing_toy, 1, seed=5, **options)
    assert outputs(mixing_toy, 1, seed=5, **options) == one
    assert len({outputs(mixing_toy, 1, seed=seed, **options)[0].token_ids for seed in range(20)}) > 10


def test_scores_are_the_models_and_stand_best_first() -> None:
    for seed in range(10):
        found = outputs(mixing_toy, 2, seed=seed, num_beams=4, num_return_sequences=4, max_new_tokens=6)
        scores = [output.score for output in found]
        assert scores == sorted(scores, reverse=True)
        for output in found:
            assert output.score == pytest.approx(sum(output.logprobs) / len(output.token_ids), abs=1e-5)


def test_truncations_leave_beams_a_way_on_besides_the_end() -> None:
    """P(end) is the greatest: with top_k=1 nothing else would be left, so one token more than there are ends stays."""
    runtime = lambda: ToyRuntime(TABLE, 4, eos_token_ids=(3,))  # noqa: E731
    found = [outputs(runtime, 2, seed=seed, top_k=1, max_new_tokens=2)[0].token_ids for seed in range(40)]
    # Two tokens are kept, and a third that is as probable as the second; the least probable one never comes.
    assert {tokens[0] for tokens in found} == {1, 2, 3}

"""Figures of an output, by hand and against their definitions written another way."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unspool.results import Completion
from unspool.results.figures import Figures, distinct, diversity, repetition

A, B, C = 7, 8, 9


def completion(tokens: tuple[int, ...], logprobs: tuple[float, ...] | None = None) -> Completion:
    return Completion(
        index=0,
        text="",
        token_ids=tokens,
        tokens=(),
        logprobs=logprobs if logprobs is not None else (-1.0,) * len(tokens),
        scores=(-9.0,) * len(tokens),
        score=-9.0,
        finish_reason="length",
    )


def test_figures_worked_example() -> None:
    figures = Figures.of(completion((A, B, A, B, C), tuple(map(math.log, (1 / 2, 1 / 8, 1 / 2, 1 / 2, 1)))))
    assert figures.num_tokens == 5
    assert figures.finish_reason == "length"
    assert math.exp(figures.logprob) == pytest.approx(1 / 64)
    assert figures.mean_logprob is not None
    assert math.exp(figures.mean_logprob) == pytest.approx(0.4353, abs=5e-5)
    assert figures.perplexity == pytest.approx(2.2974, abs=5e-5)
    assert (figures.distinct_1, figures.distinct_2, figures.distinct_3) == (0.6, 0.75, 1.0)
    assert (figures.rep_2, figures.rep_3, figures.rep_4) == (0.25, 0.0, 0.0)
    assert figures.diversity == 0.75


@pytest.mark.parametrize(
    ("tokens", "n", "expected"),
    [
        ((A,), 1, 1.0),
        ((A,), 2, None),
        ((), 1, None),
        ((A, A, A, A), 1, 0.25),
        ((A, A, A, A), 2, 1 / 3),  # three times aa
        ((A, A, A, A), 4, 1.0),  # one 4-gram, and it is new
        ((A, B, A), 2, 1.0),  # ab and ba are two
    ],
)
def test_distinct_counts_ngrams(tokens: tuple[int, ...], n: int, expected: float | None) -> None:
    assert distinct(tokens, n) == expected


def test_diversity_multiplies_what_does_not_repeat() -> None:
    # a a a a a: bigrams 1 of 4, trigrams 1 of 3, 4-grams 1 of 2
    assert diversity((A,) * 5) == pytest.approx(1 / 4 * 1 / 3 * 1 / 2)
    assert diversity((A, B, C)) is None
    assert diversity((A, B, C, A)) == 1.0


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repetition_is_the_share_of_ngrams_beyond_the_first_of_their_kind(tokens: list[int], n: int) -> None:
    counts = Counter(zip(*(tokens[offset:] for offset in range(n)), strict=False))
    if not counts:
        assert distinct(tokens, n) is None and repetition(tokens, n) is None
        return
    again = sum(count - 1 for count in counts.values())
    share = repetition(tokens, n)
    assert share == again / counts.total()
    assert distinct(tokens, n) == pytest.approx(1 - share)


@given(st.lists(st.integers(0, 3), min_size=4, max_size=30))
def test_diversity_against_its_definition(tokens: list[int]) -> None:
    expected = math.prod(1 - (repetition(tokens, n) or 0.0) for n in (2, 3, 4))
    found = diversity(tokens)
    assert found == pytest.approx(expected)
    assert found is not None and 0 < found <= 1


@given(st.lists(st.floats(-20, -0.001), min_size=1, max_size=20))
def test_perplexity_is_torchs_exponential_of_the_cross_entropy(logprobs: list[float]) -> None:
    import torch

    # Two classes with probabilities p and 1 - p; the first is the right one each time.
    rows = torch.tensor([[p, math.log(-math.expm1(p))] for p in logprobs], dtype=torch.float64)
    loss = torch.nn.functional.cross_entropy(rows, torch.zeros(len(logprobs), dtype=torch.long))
    figures = Figures.of(completion((A,) * len(logprobs), tuple(logprobs)))
    assert figures.perplexity == pytest.approx(float(loss.exp()), rel=1e-9)


def test_what_is_not_finite_or_undefined_is_null_in_json() -> None:
    impossible: dict[str, Any] = Figures.of(completion((A, B), (-1.0, -math.inf))).to_dict()
    assert json.loads(json.dumps(impossible, allow_nan=False)) == {
        "num_tokens": 2,
        "logprob": None,
        "mean_logprob": None,
        "perplexity": None,
        "distinct_1": 1.0,
        "distinct_2": 1.0,
        "distinct_3": None,
        "rep_2": 0.0,
        "rep_3": None,
        "rep_4": None,
        "diversity": None,
        "finish_reason": "length",
    }
    assert Figures.of(completion((A, B), (-1.0, -math.inf))).perplexity == math.inf
    empty = Figures.of(completion(()))
    assert (empty.logprob, empty.mean_logprob, empty.perplexity) == (0.0, None, None)

"""A score is the sum of log-probabilities, and what follows from it."""

from __future__ import annotations

import json
import math

import pytest

from unspool.results import TextScore


def score(*logprobs: float) -> TextScore:
    return TextScore(
        token_ids=tuple(range(len(logprobs))), tokens=tuple("x" for _ in logprobs), logprobs=tuple(logprobs)
    )


@pytest.mark.parametrize(
    ("probabilities", "total", "mean", "perplexity"),
    [
        ((0.5, 0.125), 0.0625, 0.25, 4.0),  # 1/2 * 1/8 = 1/16; a quarter on average; as one of four
        ((1.0,), 1.0, 1.0, 1.0),
        ((0.1, 0.1, 0.1), 0.001, 0.1, 10.0),
    ],
)
def test_total_mean_and_perplexity(
    probabilities: tuple[float, ...], total: float, mean: float, perplexity: float
) -> None:
    result = score(*map(math.log, probabilities))
    assert math.exp(result.total) == pytest.approx(total)
    assert math.exp(result.mean) == pytest.approx(mean)
    assert result.perplexity == pytest.approx(perplexity)


def test_an_impossible_token_makes_the_perplexity_infinite() -> None:
    result = score(-1.0, -math.inf)
    assert (result.total, result.perplexity) == (-math.inf, math.inf)
    assert score(-2000.0).perplexity == math.inf
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["perplexity"] is None


def test_an_empty_continuation_is_certain() -> None:
    result = score()
    assert result.total == 0.0
    assert math.isnan(result.mean) and math.isnan(result.perplexity)
    assert str(result) == "empty continuation: log-probability 0"


def test_it_prints_in_a_line() -> None:
    assert str(score(math.log(0.5), math.log(0.125))) == (
        "2 tokens: log-probability -2.7726, mean -1.3863, perplexity 4"
    )
    assert str(score(0.0)).startswith("1 token:")

"""Sampling draws from the distribution it says, and its draws belong to (seed, prompt, output, position)."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch

from tests.toys import TABLE, drain, mixing_toy, request, results, run_alone, toy
from unspool.engine import Engine
from unspool.noise import NoiseKey, gumbel, prompt_key


def test_sample_worked_example(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "unspool.engine.sampler.gumbel", lambda keys, tokens: torch.tensor([2.0, -0.5])[tokens].expand(len(keys), -1)
    )
    outputs = run_alone(lambda: two_tokens(), request([0], do_sample=True, max_new_tokens=1))
    assert isinstance(outputs, tuple) and outputs[0].token_ids == (0,)


def two_tokens():  # type: ignore[no-untyped-def]
    from unspool.runtimes.toy import ToyRuntime

    return ToyRuntime({0: [0.1, 0.9], 1: [0.1, 0.9]}, 2)


def test_a_draw_is_the_argmax_of_score_and_named_noise() -> None:
    for seed in range(20):
        outputs = run_alone(toy, request([0, 2], do_sample=True, seed=seed, max_new_tokens=1, num_return_sequences=2))
        assert isinstance(outputs, tuple)
        for index, output in enumerate(outputs):
            noise = gumbel([NoiseKey(seed, prompt_key([0, 2]), index, 2)], torch.arange(4))[0]
            assert output.token_ids[0] == int((torch.tensor(TABLE[2]).log() + noise).argmax())


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, lambda p: p),
        ({"temperature": 0.5}, lambda p: [x**2 for x in p]),
        ({"top_k": 2, "do_sample": True, "suppress_tokens": [1]}, lambda p: [0, 0, p[2], p[3]]),
        ({"top_p": 0.6}, lambda p: [0, p[1], 0, p[3]]),
        ({"min_p": 0.3}, lambda p: [0, p[1], p[2], p[3]]),
    ],
)
def test_frequencies_are_the_computed_distribution(options: dict[str, object], shape) -> None:  # type: ignore[no-untyped-def]
    draws = 6000
    engine = Engine(toy())
    number = engine.submit(
        request([2], do_sample=True, seed=11, max_new_tokens=1, num_return_sequences=draws,
                **{k: v for k, v in options.items() if k != "do_sample"})
    )  # fmt: skip
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple)
    weights = shape(TABLE[2])
    expected = [draws * w / sum(weights) for w in weights]
    counts = Counter(output.token_ids[0] for output in outputs)
    assert all(counts[t] == 0 for t, e in enumerate(expected) if e == 0)
    statistic = sum((counts[t] - e) ** 2 / e for t, e in enumerate(expected) if e > 0)
    assert statistic < 27.9  # chi-square, at most 3 degrees of freedom: exceeded with probability below 4e-6


def test_frequencies_of_whole_sequences_are_products() -> None:
    """All continuations of two tokens of the toy table, 6,000 outputs of one request."""
    draws = 6000
    engine = Engine(toy())
    number = engine.submit(request([1], do_sample=True, seed=4, max_new_tokens=2, num_return_sequences=draws))
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple)
    counts = Counter(output.token_ids for output in outputs)
    expected = {(a, b): draws * TABLE[1][a] * TABLE[a][b] for a in range(3) for b in range(4)}
    positive = {pair: value for pair, value in expected.items() if value > 0}
    assert set(counts) <= set(positive)
    statistic = sum((counts[pair] - value) ** 2 / value for pair, value in positive.items())
    assert statistic < 33  # chi-square, 5 degrees of freedom: exceeded with probability 4e-6


def test_seeds_and_outputs_draw_apart() -> None:
    texts = set()
    for seed in range(10):
        outputs = run_alone(
            mixing_toy, request([1], do_sample=True, seed=seed, max_new_tokens=8, num_return_sequences=4)
        )
        assert isinstance(outputs, tuple)
        texts |= {output.token_ids for output in outputs}
    assert len(texts) == 40  # two alike: each pair with probability below 16**-7


def test_an_output_that_ends_early_leaves_the_others_alone() -> None:
    runtime = toy()
    engine = Engine(runtime)
    number = engine.submit(request([2], do_sample=True, seed=1, max_new_tokens=30, num_return_sequences=12))
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple)
    lengths = {len(output.token_ids) for output in outputs}
    assert len(lengths) > 2 and not runtime.cached
    for output in outputs:
        assert sum(output.logprobs) == pytest.approx(output.score, abs=1e-4)
        assert math.isfinite(output.score)

"""Best-of-n returns sampling's own outputs in the order of the figure they were judged by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from tests.toys import drain, mixing_toy, request, results, run_alone, toy
from unspool.config import GenerationConfig, resolve
from unspool.engine import Engine
from unspool.protocols import Context
from unspool.strategies.best_of import BestOf
from unspool.strategies.ngram_f1 import mean_ngram_f1, ngram_f1, profile
from unspool.types import Candidate, Committed, Hypothesis, ModelInfo, Output, Row, Sample

A, B, C, D, E, END = range(6)
WORKED = [
    [(A, 0.5), (B, 0.5), (C, 0.5), (END, 1.0)],
    [(A, 0.5), (B, 0.5), (D, 0.3), (END, 1.0)],
    [(E, 0.5), (END, 1.0)],
]


def outputs(make: Any, *prompt: int, seed: int = 0, **options: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, seed=seed, **options))
    assert isinstance(found, tuple), found
    return found


def play(samples: Sequence[Sequence[tuple[int, float]]], **options: Any) -> list[tuple[tuple[int, ...], Hypothesis]]:
    """Have the strategy draw these tokens with these probabilities; returns its hypotheses with their tokens.

    None may end with its first token, so that sample i stands on branch i.
    """
    config = resolve({"best_of": len(samples), **options}, None, GenerationConfig())
    info = ModelInfo(name="none", vocab_size=6)
    talk = BestOf().run(Context(config=config, prompt=(A,), max_new_tokens=99, seed=0, info=info, eos_token_ids=(END,)))
    turn, written = next(talk), [0] * len(samples)
    while True:
        reply = []
        for ask in turn.asks:
            assert isinstance(ask, Sample)
            token, p = samples[ask.output][written[ask.output]]
            written[ask.output] += 1
            reply.append(Row((Candidate(token, 0.0, math.log(p), "eos" if token == END else None),), 0.0))
        try:
            turn = talk.send(tuple(reply))
        except StopIteration as stop:
            return [(tuple(token for token, _ in samples[each.branch]), each) for each in stop.value]
        assert not turn.commits


def test_best_of_worked_example() -> None:
    ranked = play(WORKED, best_of_by="logprob", num_return_sequences=3)
    assert [tokens for tokens, _ in ranked] == [(E, END), (A, B, C, END), (A, B, D, END)]
    assert [each.score for _, each in ranked] == pytest.approx([-0.347, -0.520, -0.648], abs=1e-3)
    ranked = play(WORKED, best_of_by="mbr", num_return_sequences=3)
    assert [tokens for tokens, _ in ranked] == [(A, B, C, END), (A, B, D, END), (E, END)]
    assert [each.score for _, each in ranked] == pytest.approx([0.1771, 0.1771, 0.0833], abs=1e-4)
    assert ranked[0][1].score == ranked[1][1].score  # the lower index stands first


def test_resemblance_worked_example() -> None:
    one, other = profile((A, B, C, D)), profile((A, B, D))
    assert ngram_f1(one, other) == ngram_f1(other, one) == pytest.approx((6 / 7 + 2 / 5) / 4)
    assert ngram_f1(one, other) == pytest.approx(0.3143, abs=1e-4)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((A,), (A,), 1.0),
        ((A, B), (A, B), 1.0),
        ((A, B, C, D, E, A), (A, B, C, D, E, A), 1.0),
        ((A,), (B,), 0.0),
        ((A, B, C), (D, E), 0.0),
        ((A, A, A), (A,), (2 * 1 / 4 + 0 + 0) / 3),  # shared as often as in both; no order of four in either
        ((A, B), (B, A), (1 + 0) / 2),
        ((A, B, A, B), (A, B), (2 * 2 / 6 + 2 * 1 / 4 + 0 + 0) / 4),
    ],
)
def test_resemblance_of_short_and_repeating_sequences(
    one: tuple[int, ...], other: tuple[int, ...], expected: float
) -> None:
    assert ngram_f1(profile(one), profile(other)) == pytest.approx(expected)
    assert ngram_f1(profile(other), profile(one)) == pytest.approx(expected)


def f1_by_removal(one: Sequence[int], other: Sequence[int]) -> float:
    """Write out the definition: take each n-gram of one sequence out of the other's list, as long as there is one."""
    values = []
    for n in range(1, 5):
        mine = [tuple(one[i : i + n]) for i in range(len(one) - n + 1)]
        theirs = [tuple(other[i : i + n]) for i in range(len(other) - n + 1)]
        if not mine and not theirs:
            continue
        left, shared = list(theirs), 0
        for gram in mine:
            if gram in left:
                left.remove(gram)
                shared += 1
        precision = shared / len(mine) if mine else 0.0
        recall = shared / len(theirs) if theirs else 0.0
        values.append(2 * precision * recall / (precision + recall) if shared else 0.0)
    return sum(values) / len(values)


@pytest.mark.parametrize("seed", range(6))
def test_minimum_bayes_risk_is_its_definition(seed: int) -> None:
    given = {"max_new_tokens": 9, "seed": seed, "temperature": 0.7}
    drawn = outputs(toy, 0, num_return_sequences=12, **given)
    tokens = [output.token_ids for output in drawn]
    figures = [
        sum(f1_by_removal(one, other) for j, other in enumerate(tokens) if j != i) / 11 for i, one in enumerate(tokens)
    ]
    found = outputs(toy, 0, best_of=12, best_of_by="mbr", num_return_sequences=12, **given)
    assert [output.score for output in found] == pytest.approx(sorted(figures, reverse=True))
    order = sorted(range(12), key=lambda i: (-round(figures[i], 9), i))
    assert [output.token_ids for output in found] == [tokens[i] for i in order]


@pytest.mark.parametrize("judge", ["logprob", "mbr"])
@pytest.mark.parametrize("seed", range(6))
def test_outputs_are_those_of_sampling_in_another_order(judge: str, seed: int) -> None:
    given = {"max_new_tokens": 8, "seed": seed, "top_p": 0.9}
    drawn = outputs(lambda: mixing_toy(7), 1, num_return_sequences=9, **given)
    found = outputs(lambda: mixing_toy(7), 1, best_of=9, best_of_by=judge, num_return_sequences=9, **given)
    bare = lambda group: sorted((each.token_ids, each.logprobs, each.finish_reason) for each in group)  # noqa: E731
    assert bare(found) == bare(drawn)
    scores = [output.score for output in found]
    assert scores == sorted(scores, reverse=True)
    best = outputs(lambda: mixing_toy(7), 1, best_of=9, best_of_by=judge, num_return_sequences=2, **given)
    assert best == found[:2]


@pytest.mark.parametrize("seed", range(6))
def test_by_default_the_figure_is_the_mean_log_probability(seed: int) -> None:
    found = outputs(toy, 2, seed=seed, best_of=8, num_return_sequences=8, max_new_tokens=12)
    assert len({len(output.token_ids) for output in found}) > 1
    for output in found:
        assert output.score == pytest.approx(sum(output.logprobs) / len(output.token_ids), abs=1e-5)


def test_equal_samples_get_equal_figures_and_count() -> None:
    text, other = (A, B, C, A, D, B, B, E, END), (B, C, A, END)
    found = mean_ngram_f1([text, other, text, other, other, (D, A, END), text])
    assert found[0] == found[2] == found[6] and found[1] == found[3] == found[4]
    alone = f1_by_removal(text, other)
    assert found[0] == pytest.approx((2 + 3 * alone + f1_by_removal(text, (D, A, END))) / 6)


def test_one_sample_has_no_other_to_resemble() -> None:
    (found,) = outputs(toy, 0, seed=3, best_of=1, best_of_by="mbr", max_new_tokens=5)
    assert found.score == 0.0
    assert found.token_ids == outputs(toy, 0, seed=3, do_sample=True, max_new_tokens=5)[0].token_ids


def test_nothing_is_committed_before_the_end() -> None:
    engine = Engine(mixing_toy(7))
    number = engine.submit(request([1], seed=4, best_of=6, num_return_sequences=2, max_new_tokens=9))
    events = drain(engine)
    found = results(events)[number]
    assert isinstance(found, tuple)
    pieces = [event for event in events if isinstance(event, Committed)]
    assert [(piece.output, piece.token_ids) for piece in pieces] == [
        (index, output.token_ids) for index, output in enumerate(found)
    ]

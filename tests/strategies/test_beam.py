"""Beam search on tables worked by hand, against brute force, and as a stream."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest

from tests.toys import END, TABLE, drain, mixing_toy, request, results, run_alone, toy
from unspool.engine import Engine
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Committed, Output

A, B, C, STOP = range(4)


def worked() -> ToyRuntime:
    table = {A: [0, 0.6, 0.4, 0], B: [0.3, 0, 0.3, 0.4], C: [0, 0.1, 0, 0.9]}
    return ToyRuntime(table, 4, eos_token_ids=(STOP,))


def outputs_of(make: Any, *prompt: int, **options: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, **options))
    assert isinstance(found, tuple), found
    return found


def test_beam_search_worked_example() -> None:
    found = outputs_of(worked, A, num_beams=2, num_return_sequences=2, length_penalty=0.0, max_new_tokens=4)
    assert [output.token_ids for output in found] == [(C, STOP), (B, STOP)]
    assert [math.exp(output.score) for output in found] == pytest.approx([0.36, 0.24], abs=1e-6)
    assert found[0].logprobs == pytest.approx((math.log(0.4), math.log(0.9)), abs=1e-6)


def all_sequences(longest: int) -> dict[tuple[int, ...], float]:
    """Every sequence of the toy table from token 0: ended, or of the longest length, with its log-probability."""
    found = {}
    for length in range(1, longest + 1):
        for tokens in itertools.product(range(4), repeat=length):
            if END in tokens[:-1] or (length < longest and tokens[-1] != END):
                continue
            p = math.prod(TABLE[a][b] for a, b in itertools.pairwise((0, *tokens)))
            if p > 0:
                found[tokens] = math.log(p)
    return found


@pytest.mark.parametrize("longest", [1, 2, 3, 4])
def test_at_full_width_the_best_of_all_sequences_is_found(longest: int) -> None:
    exact = all_sequences(longest)
    found = outputs_of(
        toy, 0, num_beams=64, early_stopping="never", length_penalty=0.0, max_new_tokens=longest,
        num_return_sequences=min(5, len(exact)),
    )  # fmt: skip
    best = sorted(exact.values(), reverse=True)[: len(found)]
    assert [output.score for output in found] == pytest.approx(best, abs=1e-5)
    assert all(exact[output.token_ids] == pytest.approx(output.score, abs=1e-5) for output in found)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("penalty", [-1.0, 0.0, 1.0, 2.0])
def test_outputs_stand_best_first_and_scores_can_be_had_again(early_stopping: Any, penalty: float) -> None:
    for prompt in range(12):
        found = outputs_of(
            mixing_toy, prompt, num_beams=4, num_return_sequences=4, early_stopping=early_stopping,
            length_penalty=penalty, max_new_tokens=7, repetition_penalty=1.2,
        )  # fmt: skip
        scores = [output.score for output in found]
        assert scores == sorted(scores, reverse=True)
        for output in found:
            assert output.score == pytest.approx(sum(output.scores) / len(output.token_ids) ** penalty, abs=1e-5)


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
def test_the_streamed_tokens_are_the_final_ones(early_stopping: Any) -> None:
    early = 0
    for prompt in range(15):
        engine = Engine(mixing_toy(9))
        number = engine.submit(
            request([prompt % 8, 1], num_beams=3, early_stopping=early_stopping, max_new_tokens=12, length_penalty=0.5)
        )
        events = drain(engine)
        (output,) = results(events)[number]  # type: ignore[misc]
        commits = [event for event in events if isinstance(event, Committed)]
        assert tuple(token for event in commits for token in event.token_ids) == output.token_ids
        assert commits[-1].finish_reason == output.finish_reason
        early += len(commits) > 1
    assert early > 5, "nothing was committed before the end"


def test_one_pass_a_token_for_all_beams_and_no_more_forks_than_needed() -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    engine.submit(request([1, 2, 3], num_beams=5, max_new_tokens=6, suppress_tokens=[16]))
    drain(engine)
    assert runtime.passes[0] == (3,)
    assert runtime.passes[1:] == [(1,) * 5] * 5
    assert runtime.num_forks <= 4 * 5


def test_an_end_counts_only_from_among_the_best() -> None:
    """The ending token of rank 3 of 2 beams finishes nothing, though no better sequence ever ends by itself."""
    table = {0: [0.0, 0.5, 0.4, 0.1], 1: [0.0, 0.5, 0.5, 0.0], 2: [0.0, 0.5, 0.5, 0.0]}
    found = outputs_of(
        lambda: ToyRuntime(table, 4, eos_token_ids=(3,)), 0, num_beams=2, num_return_sequences=2, max_new_tokens=2
    )
    assert all(output.finish_reason == "length" and 3 not in output.token_ids for output in found)


def test_stop_strings_and_several_ends_finish_beams() -> None:
    found = outputs_of(worked, A, num_beams=3, num_return_sequences=3, eos_token_id=[STOP, B], max_new_tokens=5)
    assert all(output.token_ids[-1] in (STOP, B) for output in found if output.finish_reason == "eos")
    assert len({output.token_ids for output in found}) == 3

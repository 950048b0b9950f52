"""Greedy search on tables worked by hand."""

from __future__ import annotations

import math

import pytest

from tests.toys import request, run_alone
from unspool.runtimes.toy import ToyRuntime

A, B, C, END = range(4)


def worked() -> ToyRuntime:
    return ToyRuntime({A: [0, 0.6, 0.4, 0], B: [0.3, 0, 0.7, 0], C: [0, 0, 0, 1.0]}, 4, eos_token_ids=(END,))


def test_greedy_worked_example() -> None:
    outputs = run_alone(worked, request([A]))
    assert isinstance(outputs, tuple)
    (output,) = outputs
    assert output.token_ids == (B, C, END)
    assert output.logprobs == pytest.approx((math.log(0.6), math.log(0.7), 0.0), abs=1e-6)
    assert output.score == pytest.approx(-0.8675, abs=1e-4)
    assert output.finish_reason == "eos"


@pytest.mark.parametrize(
    ("options", "tokens", "reason"),
    [
        ({"max_new_tokens": 1}, (B,), "length"),
        ({"max_new_tokens": 2}, (B, C), "length"),
        ({"max_new_tokens": 3}, (B, C, END), "eos"),
        ({"max_length": 3}, (B, C), "length"),
        ({"eos_token_id": C}, (B, C), "eos"),
        ({"eos_token_id": [END, B]}, (B,), "eos"),
        ({"min_new_tokens": 3, "max_new_tokens": 4, "bad_words_ids": [[C]]}, (B, A, B, A), "length"),
    ],
)
def test_greedy_ends_for_the_reason_it_says(options: dict[str, object], tokens: tuple[int, ...], reason: str) -> None:
    outputs = run_alone(worked, request([A], **options))
    assert isinstance(outputs, tuple)
    assert (outputs[0].token_ids, outputs[0].finish_reason) == (tokens, reason)


def test_greedy_ties_go_to_the_lowest_token() -> None:
    tied = ToyRuntime({0: [0.2, 0.4, 0.4], 1: [0, 0.5, 0.5], 2: [1, 0, 0]}, 3)
    outputs = run_alone(lambda: tied, request([0], max_new_tokens=2))
    assert isinstance(outputs, tuple) and outputs[0].token_ids == (1, 1)

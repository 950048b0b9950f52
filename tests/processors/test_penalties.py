"""Repetition, presence and frequency penalties: worked examples and scopes."""

from __future__ import annotations

import pytest

from tests.processors.support import INF, one

SCORES = [3.0, -1.0, 2.0]


def test_worked_example_of_repetition_penalty():
    assert one("repetition_penalty", SCORES, prompt=(0, 1, 1), repetition_penalty=2.0) == [1.5, -2, 2]


def test_worked_example_of_presence_penalty():
    assert one("presence_penalty", SCORES, (0, 1, 1), prompt=(2,), presence_penalty=0.5) == [2.5, -1.5, 2]


def test_worked_example_of_frequency_penalty():
    assert one("frequency_penalty", SCORES, (0, 1, 1), prompt=(2,), frequency_penalty=0.5) == [2.5, -2, 2]


def test_worked_example_of_encoder_repetition_penalty():
    assert one("encoder_repetition_penalty", SCORES, (2,), prompt=(0, 1), encoder_repetition_penalty=2.0) == [
        6,
        -0.5,
        2,
    ]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.5, 1, 1]),
        ({"penalty_scope": "prompt_and_output"}, [0.5, 0.5, 1, 1]),
        ({"penalty_scope": "output"}, [1, 0.5, 1, 1]),
        ({"penalty_exclude": (0,)}, [1, 0.5, 1, 1]),
        ({"penalty_exclude": (0, 1)}, [1, 1, 1, 1]),
        ({"prompt_ignore_length": 1}, [1, 0.5, 1, 1]),
        ({"prompt_ignore_length": 99}, [1, 0.5, 1, 1]),
    ],
)
def test_where_the_repetition_penalty_looks(options: dict, expected: list[float]):
    request = {"prompt": (0, 1), "repetition_penalty": 2.0}
    assert one("repetition_penalty", [1, 1, 1, 1], (1,), **request, **options) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 0, 1, 1]),
        ({"penalty_scope": "output"}, [1, 0, 1, 1]),
        ({"penalty_scope": "prompt_and_output"}, [0, -1, 1, 1]),
        ({"penalty_scope": "prompt_and_output", "prompt_ignore_length": 1}, [1, -1, 1, 1]),
        ({"penalty_exclude": (1,)}, [1, 1, 1, 1]),
    ],
)
def test_where_the_frequency_penalty_looks(options: dict, expected: list[float]):
    request = {"prompt": (0, 1), "frequency_penalty": 1.0}
    assert one("frequency_penalty", [1, 1, 1, 1], (1,), **request, **options) == expected


def test_the_encoder_penalty_looks_at_the_source_alone():
    request = {"prompt": (2,), "source": (0, 1), "encoder_repetition_penalty": 2.0}
    assert one("encoder_repetition_penalty", SCORES, **request) == [6, -0.5, 2]


@pytest.mark.parametrize("name", ["repetition_penalty", "presence_penalty", "frequency_penalty"])
def test_forbidden_tokens_stay_forbidden_and_unknown_ones_are_passed_over(name: str):
    result = one(name, [-INF, 1.0], (0, 0, 7), **{name: 1.5})
    assert result == [-INF, 1.0]

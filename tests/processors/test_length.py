"""Holding back and urging on the end: worked examples, moments, extremes."""

from __future__ import annotations

import math

import pytest

from tests.processors.support import INF, context, one
from unspool.errors import OptionError
from unspool.processors import PROCESSORS


@pytest.mark.parametrize(("written", "held"), [(0, True), (1, True), (2, False), (3, False)])
def test_worked_example_of_min_length(written: int, held: bool):
    request = {"prompt": (1, 1, 1), "min_length": 5, "eos": (0, 2)}
    assert one("min_length", [1, 1, 1], (1,) * written, **request) == ([-INF, 1, -INF] if held else [1, 1, 1])


@pytest.mark.parametrize(("written", "held"), [(0, True), (1, True), (2, False), (3, False)])
def test_worked_example_of_min_new_tokens(written: int, held: bool):
    request = {"prompt": (1, 1, 1), "min_new_tokens": 2, "eos": (0, 2)}
    assert one("min_new_tokens", [1, 1, 1], (1,) * written, **request) == ([-INF, 1, -INF] if held else [1, 1, 1])


@pytest.mark.parametrize("name", ["min_length", "min_new_tokens"])
def test_without_an_eos_there_is_nothing_to_hold_back(name: str):
    assert PROCESSORS[name].start(context(**{name: 9})) is None


def test_a_prompt_that_has_min_length_turns_it_off():
    assert PROCESSORS["min_length"].start(context((1,) * 5, eos=(0,), min_length=5)) is None


def test_worked_example_of_exponential_decay_length_penalty():
    request = {"eos": (0,), "exponential_decay_length_penalty": (2, 1.5)}
    assert one("exponential_decay_length_penalty", [-4, 1], (1,) * 4, **request) == [1, 1]
    assert one("exponential_decay_length_penalty", [-4, 1], (1,) * 2, **request) == [-4, 1]


def test_forbidden_eos_stays_forbidden_and_endless_growth_stays_finite():
    request = {"eos": (0, 1), "exponential_decay_length_penalty": (0, 9.0)}
    result = one("exponential_decay_length_penalty", [-INF, -4, 1], (2,) * 2000, **request)
    assert result[0] == -INF and result[2] == 1
    assert 0 < result[1] < math.inf


def test_decay_without_an_eos_is_refused():
    with pytest.raises(OptionError, match="exponential_decay_length_penalty"):
        PROCESSORS["exponential_decay_length_penalty"].start(context(exponential_decay_length_penalty=(1, 1.5)))

"""Temperature and renormalization."""

from __future__ import annotations

import math

import pytest

from tests.processors.support import INF, one


def test_worked_example_of_temperature():
    assert one("temperature", [2, 1, -INF], temperature=0.5) == [4, 2, -INF]


def test_worked_example_of_renormalize_logits():
    assert one("renormalize_logits", [0, 0, -INF], renormalize_logits=True) == pytest.approx(
        [math.log(0.5), math.log(0.5), -INF]
    )

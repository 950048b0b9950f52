"""Temperature and renormalization."""

from __future__ import annotations

import math

import pytest
import torch

from tests.processors.support import INF, one


def test_worked_example_of_temperature():
    assert one("temperature", [2, 1, -INF], temperature=0.5) == [4, 2, -INF]


def test_worked_example_of_remove_invalid_values():
    least, greatest = torch.finfo(torch.float32).min, torch.finfo(torch.float32).max
    found = one("remove_invalid_values", [math.nan, 2, -INF, INF], remove_invalid_values=True)
    assert found == [0, 2, least, greatest]


def test_worked_example_of_renormalize_logits():
    assert one("renormalize_logits", [0, 0, -INF], renormalize_logits=True) == pytest.approx(
        [math.log(0.5), math.log(0.5), -INF]
    )

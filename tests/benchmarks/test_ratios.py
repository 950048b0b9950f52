"""Pairs in, medians out."""

import pytest

from benchmarks.ratios import ratio


def test_ratios_are_taken_pair_by_pair():
    # 2/1, 9/3, 4/4: a machine that was three times slower in the second round slowed both
    assert ratio([1.0, 3.0, 4.0], [2.0, 9.0, 4.0]) == (2.0, 1.0, 3.0)


def test_a_side_that_gave_up_is_compared_as_far_as_it_came():
    assert ratio([1.0, 2.0, 3.0], [3.0]) == (3.0, 3.0, 3.0)


@pytest.mark.parametrize(("ours", "theirs"), [([], [1.0]), ([1.0], []), ([], [])])
def test_without_a_pair_there_is_no_ratio(ours: list[float], theirs: list[float]):
    assert ratio(ours, theirs) is None

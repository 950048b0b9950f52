"""Sequence bias: worked example, sums, refusals."""

from __future__ import annotations

import pytest

from tests.processors.support import context, one
from unspool.errors import OptionError
from unspool.processors import PROCESSORS


def test_worked_example_of_sequence_bias():
    bias = {(7,): 1.0, (4, 7): 2.5, (5, 7): 9.0}
    assert one("sequence_bias", [0.0] * 8, prompt=(1, 4), sequence_bias=bias) == [0, 0, 0, 0, 0, 0, 0, 3.5]


def test_a_list_of_pairs_means_the_same_as_a_mapping():
    pairs = [[[7], 1.0], [[4, 7], 2.5]]
    assert one("sequence_bias", [0.0] * 8, (4,), sequence_bias=pairs)[7] == 3.5


@pytest.mark.parametrize("length", range(1, 6))
def test_a_sequence_is_biased_once_all_but_its_last_token_stand_in_the_context(length: int):
    sequence = (3, 1, 4, 1, 5)
    result = one("sequence_bias", [0.0] * 8, prompt=sequence[:length], sequence_bias={sequence: 2.0})
    assert result[5] == (2.0 if length == 4 else 0.0)


def test_sequences_that_end_with_the_same_token_add_up():
    bias = {(1, 5): 1.0, (4, 1, 5): 2.0, (1, 4, 1, 5): 4.0, (2, 5): 8.0}
    assert one("sequence_bias", [0.0] * 8, (4, 1), prompt=(3, 1), sequence_bias=bias)[5] == 7.0


def test_an_unknown_token_is_refused():
    with pytest.raises(OptionError, match=r"`sequence_bias` must hold token ids in \[0, 8\), got 8"):
        PROCESSORS["sequence_bias"].start(context(vocab_size=8, sequence_bias={(1, 8): 1.0}))

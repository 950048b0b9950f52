"""Forbidden and forced tokens: worked examples, moments, refusals."""

from __future__ import annotations

import pytest
import torch

from tests.processors.support import INF, applied, context, one, state_of
from unspool.errors import OptionError
from unspool.processors import PROCESSORS

SCORES = [1.0, 2.0, 3.0]
FIRST = [0.0, -INF, -INF]
WITHOUT_ONE = [1.0, -INF, 3.0]


def test_worked_example_of_bad_words_ids():
    words = [[3], [1, 2]]
    assert one("bad_words_ids", [0.0] * 4, prompt=(0,), bad_words_ids=words) == [0, 0, 0, -INF]
    assert one("bad_words_ids", [0.0] * 4, (1,), prompt=(0,), bad_words_ids=words) == [0, 0, -INF, -INF]


def test_a_bad_word_that_is_an_eos_token_is_passed_over_but_not_one_that_ends_with_it():
    words = [[2], [1, 2], [0]]
    assert one("bad_words_ids", SCORES, eos=(2,), bad_words_ids=words) == [-INF, 2, 3]
    assert one("bad_words_ids", SCORES, (1,), eos=(2,), bad_words_ids=words) == [-INF, 2, -INF]


def test_worked_example_of_suppress_tokens():
    assert one("suppress_tokens", SCORES, suppress_tokens=[1]) == WITHOUT_ONE


def test_worked_example_of_begin_suppress_tokens():
    assert one("begin_suppress_tokens", SCORES, begin_suppress_tokens=[1]) == WITHOUT_ONE
    assert one("begin_suppress_tokens", SCORES, (0,), begin_suppress_tokens=[1]) == SCORES


def test_begin_is_behind_a_forced_bos():
    options = {"begin_suppress_tokens": [1], "forced_bos_token_id": 0}
    assert one("begin_suppress_tokens", SCORES, prompt=(2,), **options) == SCORES
    assert one("begin_suppress_tokens", SCORES, (0,), prompt=(2,), **options) == WITHOUT_ONE
    assert one("begin_suppress_tokens", SCORES, prompt=(2, 2), **options) == WITHOUT_ONE


def test_worked_example_of_forced_bos_token_id():
    assert one("forced_bos_token_id", SCORES, prompt=(2,), forced_bos_token_id=0) == FIRST
    assert one("forced_bos_token_id", SCORES, (0,), prompt=(2,), forced_bos_token_id=0) == SCORES
    assert PROCESSORS["forced_bos_token_id"].start(context((2, 2), forced_bos_token_id=0)) is None


def test_worked_example_of_forced_eos_token_id():
    assert one("forced_eos_token_id", SCORES, max_new_tokens=2, forced_eos_token_id=0) == SCORES
    assert one("forced_eos_token_id", SCORES, (1,), max_new_tokens=2, forced_eos_token_id=0) == FIRST


def test_one_of_several_eos_tokens_is_forced():
    assert one("forced_eos_token_id", SCORES, max_new_tokens=1, forced_eos_token_id=[2, 0]) == [0, -INF, 0]


def test_rows_that_are_not_at_their_moment_stay_as_they_are():
    states = [state_of("forced_eos_token_id", context(max_new_tokens=n, forced_eos_token_id=0)) for n in (2, 1, 3)]
    result = applied("forced_eos_token_id", states, torch.tensor([SCORES] * 3))
    assert result.tolist() == [SCORES, FIRST, SCORES]


@pytest.mark.parametrize(
    ("name", "accepted", "refused"),
    [
        ("bad_words_ids", [[2]], [[3]]),
        ("bad_words_ids", [[1, 2]], [[1, -1]]),
        ("forced_bos_token_id", 2, 3),
        ("forced_eos_token_id", [0, 2], [0, 3]),
        ("forced_eos_token_id", 0, []),
    ],
)
def test_tokens_that_the_vocabulary_lacks_are_refused(name: str, accepted: object, refused: object):
    assert PROCESSORS[name].start(context(vocab_size=3, **{name: accepted})) is not None
    with pytest.raises(OptionError, match=f"`{name}`"):
        PROCESSORS[name].start(context(vocab_size=3, **{name: refused}))


@pytest.mark.parametrize("name", ["suppress_tokens", "begin_suppress_tokens"])
def test_suppressing_a_token_that_cannot_be_produced_changes_nothing(name: str):
    assert one(name, SCORES, **{name: [1, 99]}) == WITHOUT_ONE
    assert PROCESSORS[name].start(context(vocab_size=3, **{name: [99]})) is None

"""No n-gram twice: worked examples and edges."""

from __future__ import annotations

import pytest
import torch

from tests.processors.support import INF, applied, context, one, state_of
from unspool.processors import PROCESSORS


def banned(name: str, output: tuple[int, ...] = (), **request) -> list[int]:
    return [token for token, score in enumerate(one(name, [0.0] * 9, output, **request)) if score == -INF]


def test_worked_example_of_no_repeat_ngram_size():
    assert banned("no_repeat_ngram_size", (), prompt=(5, 6, 7, 5, 6), no_repeat_ngram_size=3) == [7]
    assert banned("no_repeat_ngram_size", (7, 5, 6), prompt=(5, 6), no_repeat_ngram_size=3) == [7]


def test_worked_example_of_encoder_no_repeat_ngram_size():
    assert banned("encoder_no_repeat_ngram_size", (5, 6), prompt=(5, 6, 7), encoder_no_repeat_ngram_size=3) == [7]
    assert banned("encoder_no_repeat_ngram_size", (1, 2, 1), prompt=(5, 6, 7), encoder_no_repeat_ngram_size=2) == []


def test_n_grams_of_a_source_may_begin_in_the_prompt_of_the_decoder():
    request = {"source": (5, 6, 7), "encoder_no_repeat_ngram_size": 2}
    assert banned("encoder_no_repeat_ngram_size", (), prompt=(0, 6), **request) == [7]
    assert banned("encoder_no_repeat_ngram_size", (6,), prompt=(0,), **request) == [7]
    assert banned("encoder_no_repeat_ngram_size", (0,), prompt=(0, 0), **request) == []


@pytest.mark.parametrize(("size", "expected"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (5, [4]), (6, []), (50, [])])
def test_all_followers_of_the_last_tokens_are_banned_wherever_they_stood(size: int, expected: list[int]):
    output = (3, 1, 4, 1, 2, 3, 1)
    assert banned("no_repeat_ngram_size", output, prompt=(1, 2), no_repeat_ngram_size=size) == expected


def test_ids_outside_the_vocabulary_are_context_but_never_banned():
    assert banned("no_repeat_ngram_size", (1,), prompt=(1, 99, 1, 2), no_repeat_ngram_size=2) == [2]
    assert banned("no_repeat_ngram_size", (99,), prompt=(99, 3), no_repeat_ngram_size=2) == [3]


@pytest.mark.parametrize("size", [1, 2])
def test_what_a_fork_writes_does_not_bind_its_parent(size: int):
    processor = PROCESSORS["no_repeat_ngram_size"]
    parent = state_of("no_repeat_ngram_size", context((1,), no_repeat_ngram_size=size))
    child = processor.fork(parent)
    for token in (3, 1):
        child = processor.advance(child, token)
    result = applied("no_repeat_ngram_size", [parent, child], torch.zeros(2, 100))
    assert [(row == -INF).nonzero()[:, 0].tolist() for row in result] == ([[1], [1, 3]] if size == 1 else [[], [3]])

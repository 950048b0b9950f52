"""The grammar mask: its worked example, rows of several requests, and the support that DoLa reads."""

from __future__ import annotations

import math

import pytest
import torch

from tests.grammars.toys import END, LETTERS, compiled, tokenizer_of
from tests.processors.support import applied, context, one, state_of
from unspool.errors import OptionError
from unspool.processors import DEFAULT_ORDER, PROCESSORS

EOS = LETTERS.index(END)
FORBIDDEN = -math.inf


def kept(output: str, **option: object) -> list[str]:
    """Return the tokens that are allowed after an output, one token per character."""
    tokens = [LETTERS.index(each) for each in output]
    given = [float(place) for place in range(len(LETTERS))]
    scores = one("grammar", given, tokens, eos=(EOS,), grammar=compiled(**option))
    assert all(score in (float(place), FORBIDDEN) for place, score in enumerate(scores)), "a score has changed"
    return [LETTERS[place] for place, score in enumerate(scores) if score > FORBIDDEN]


def test_worked_example():
    tokens = ("a", "b", "ab", END)
    grammar = compiled(tokenizer_of(tokens), choice=["ab", "b"])
    for output, expected in (((), [0, 1, 2]), ((0,), [1]), ((2,), [3]), ((0, 1), [3])):
        scores = one("grammar", [0.0] * 4, output, eos=(3,), grammar=grammar)
        assert [token for token, score in enumerate(scores) if score == 0.0] == expected, output


@pytest.mark.parametrize(
    ("option", "output", "expected"),
    [
        ({"choice": ["ab", "a-"]}, "", ["a", "ab"]),
        ({"choice": ["ab", "a-"]}, "a", ["b", "-"]),
        ({"regex": "a*"}, "", ["a", "aa", END]),
        ({"grammar": 'start: "a" x\nx: "b" | x "c"'}, "a", ["b", "bc"]),
        ({"grammar": 'root ::= "a" x\nx ::= "b" | "c" x'}, "a", ["b", "c"]),
    ],
)
def test_each_option_masks(option: dict, output: str, expected: list[str]):
    assert kept(output, **option) == expected


def test_rows_of_different_grammars_are_masked_in_one_batch():
    scores = torch.zeros(3, len(LETTERS))
    states = [
        state_of("grammar", context(vocab_size=len(LETTERS), eos=(EOS,), grammar=compiled(regex=pattern)))
        for pattern in ("a", "b", "-*")
    ]
    kept_by_row = [(row > FORBIDDEN).nonzero()[:, 0].tolist() for row in applied("grammar", states, scores)]
    assert kept_by_row == [[0], [1], [8, EOS]]


def test_the_mask_is_first_so_that_top_p_keeps_a_share_of_the_allowed_tokens():
    assert DEFAULT_ORDER[0] == "grammar"


def test_its_support_is_its_mask():
    state = state_of("grammar", context(vocab_size=len(LETTERS), eos=(EOS,), grammar=compiled(regex="a|b")))
    support = PROCESSORS["grammar"].support(state, len(LETTERS))
    assert support is not None and support.nonzero()[:, 0].tolist() == [0, 1]


def test_a_model_with_more_rows_than_tokens_never_writes_the_padding():
    grammar = compiled(vocab_size=77, regex=".*")
    scores = one("grammar", [0.0] * 77, eos=(EOS,), grammar=grammar)
    assert [token for token, score in enumerate(scores) if score == 0.0] == list(range(len(LETTERS)))


def test_a_request_without_an_end_token_is_refused():
    with pytest.raises(OptionError, match="`regex` needs an end-of-sequence token") as caught:
        PROCESSORS["grammar"].start(context(vocab_size=len(LETTERS), grammar=compiled(regex="a")))
    assert caught.value.option == "regex"

"""Forced words given as text, on the tokenizer of the embedded model and on one of each kind."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.text.tokenizers import byte_fallback, byte_level, word_piece
from unspool.errors import OptionError
from unspool.loading.load import EMBEDDED
from unspool.text.forced_words import forced_word_ids


@cache
def tale() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


def test_a_text_stands_for_its_tokens_with_and_without_a_space_in_front() -> None:
    tokenizer = tale()
    alone, spaced = (tuple(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("king", " king"))
    assert alone != spaced and len(alone) == len(spaced) == 1
    assert forced_word_ids(("king",), tokenizer) == (tuple(sorted((alone, spaced))),)


def test_each_word_has_its_own_alternatives() -> None:
    tokenizer = tale()
    king, queen = forced_word_ids(("king", "queen"), tokenizer)
    (either,) = forced_word_ids((("king", "queen", "king"),), tokenizer)
    assert set(either) == {*king, *queen} and len(either) == len(king) + len(queen)


@pytest.mark.parametrize("make", [tale, byte_level, byte_fallback, word_piece], ids=lambda make: make.__name__)
@pytest.mark.parametrize("text", ["king", " king", "the king had", "daughter", "laugh", "a", "king was"])
def test_every_encoding_reads_as_the_text_behind_other_text(make: Any, text: str) -> None:
    tokenizer = make()
    before = tokenizer("so", add_special_tokens=False)["input_ids"]
    (alternatives,) = forced_word_ids((text,), tokenizer)
    assert alternatives and len(set(alternatives)) == len(alternatives)
    for ids in alternatives:
        written = tokenizer.decode([*before, *ids])
        assert text in written[len(tokenizer.decode(before)) :]
        assert not set(ids) & set(tokenizer.all_special_ids)


@pytest.mark.parametrize("text", ["King's daughter!", "\n", "🙂", "国王", "naïve"])
@pytest.mark.parametrize("make", [tale, byte_level, byte_fallback], ids=lambda make: make.__name__)
def test_text_of_several_bytes_and_lines_is_written_too(make: Any, text: str) -> None:
    tokenizer = make()
    (alternatives,) = forced_word_ids((text,), tokenizer)
    assert all(text in tokenizer.decode([*ids, *ids]) for ids in alternatives)


def test_a_tokenizer_that_adds_a_space_itself_can_go_without() -> None:
    tokenizer = byte_fallback()
    before = tokenizer("king", add_special_tokens=False)["input_ids"]
    (alternatives,) = forced_word_ids(("国王",), tokenizer)
    assert "king国王" in {tokenizer.decode([*before, *ids]) for ids in alternatives}


def test_a_sequence_that_holds_a_shorter_alternative_is_left_out() -> None:
    tokenizer = tale()
    (alternatives,) = forced_word_ids((" king",), tokenizer)
    assert alternatives == (tuple(tokenizer(" king", add_special_tokens=False)["input_ids"]),)


def test_a_text_without_tokens_is_refused() -> None:
    with pytest.raises(OptionError, match="`force_words` must contain texts with at least one token, got ' '"):
        forced_word_ids((" ",), word_piece())


def test_a_text_that_the_tokenizer_does_not_know_is_refused() -> None:
    with pytest.raises(OptionError, match=r"texts that the tokenizer can encode \(it turns this one into '\[UNK\]'\)"):
        forced_word_ids(("Ωmega",), word_piece())

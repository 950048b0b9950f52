"""A single token reads as what it is: with its space, by its name, or byte by byte."""

from __future__ import annotations

import pytest

from tests.text.tokenizers import byte_fallback, byte_level, word_piece
from unspool.text.detokenize import REPLACEMENT
from unspool.text.labels import token_label

KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "word piece": word_piece}


@pytest.mark.parametrize(
    ("kind", "token", "label"),
    [
        ("byte level", "Ġking", " king"),
        ("byte level", "Ċ", "\n"),
        ("byte level", "<|end|>", "<|end|>"),
        ("byte level", "Ã", "<0xC3>"),
        ("byte fallback", "▁king", " king"),
        ("byte fallback", "e", "e"),
        ("byte fallback", "<0xF0>", "<0xF0>"),
        ("byte fallback", "<0x0A>", "\n"),
        ("byte fallback", "</s>", "</s>"),
        ("word piece", "king", " king"),
        ("word piece", "##e", "e"),
    ],
)
def test_a_token_reads_as_behind_other_text(kind: str, token: str, label: str) -> None:
    tokenizer = KINDS[kind]()
    token_id = tokenizer.convert_tokens_to_ids(token)
    assert tokenizer.convert_ids_to_tokens(token_id) == token
    assert token_label(tokenizer, token_id) == label
    assert token_label(tokenizer.backend_tokenizer, token_id) == label


def test_without_a_tokenizer_or_a_text_the_id_stands() -> None:
    assert token_label(None, 17) == "<id 17>"
    assert token_label(byte_level(), 100_000) == "<id 100000>"


def test_a_token_that_is_the_replacement_character_itself_is_no_broken_byte() -> None:
    class Names:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return REPLACEMENT * len(ids)

        def id_to_token(self, token: int) -> str:
            return "ï¿½"

    assert token_label(Names(), 0) == REPLACEMENT


def test_a_tokenizer_that_names_no_tokens_still_gets_a_label() -> None:
    class Text:
        def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
            return "ab" * len(ids)

    assert token_label(Text(), 3) == "ab"

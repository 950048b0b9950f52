"""Prompts of a gap, for the tokenizers of models that can fill one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import CodeLlamaTokenizer, PreTrainedTokenizerFast

from tests.text.tokenizers import byte_fallback, byte_level
from unspool.text.infill import KNOWN, fill_ends, fill_prompt, fill_tokens

PREFIX, SUFFIX = "def f(x):\n    return ", " + 1\n\tdone"


def with_tokens(*texts: str) -> Any:
    """Return a byte-level tokenizer with further special tokens."""
    copied = Tokenizer.from_str(byte_level()._tokenizer.to_str())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copied, eos_token="<|end|>")
    tokenizer.add_special_tokens({"extra_special_tokens": list(texts)})
    return tokenizer


def code_llama() -> Any:
    """transformers' own class for CodeLlama, on a small vocabulary."""
    model = json.loads(byte_fallback()._tokenizer.to_str())["model"]
    return CodeLlamaTokenizer(vocab=model["vocab"], merges=[tuple(pair) for pair in model["merges"]])


# As the model cards write them.
FORMATS = {
    "Qwen2.5-Coder": "<|fim_prefix|>{}<|fim_suffix|>{}<|fim_middle|>",
    "StarCoder": "<fim_prefix>{}<fim_suffix>{}<fim_middle>",
    "SantaCoder": "<fim-prefix>{}<fim-suffix>{}<fim-middle>",
    "DeepSeek-Coder": "<｜fim▁begin｜>{}<｜fim▁hole｜>{}<｜fim▁end｜>",
}
SPECIAL = {
    "Qwen2.5-Coder": ("<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>", "<|repo_name|>"),
    "StarCoder": ("<fim_prefix>", "<fim_middle>", "<fim_suffix>", "<fim_pad>"),
    "SantaCoder": ("<fim-prefix>", "<fim-middle>", "<fim-suffix>"),
    "DeepSeek-Coder": ("<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_prompt_is_that_of_the_model_card(name: str) -> None:
    tokenizer = with_tokens(*SPECIAL[name])
    tokens = fill_tokens(tokenizer)
    assert tokens is not None
    expected = tokenizer(FORMATS[name].format(PREFIX, SUFFIX))["input_ids"]
    assert fill_prompt(tokenizer, tokens, PREFIX, SUFFIX) == expected
    ids = tokenizer(PREFIX)["input_ids"]
    assert fill_prompt(tokenizer, tokens, ids, SUFFIX) == expected
    special = {tokenizer.convert_tokens_to_ids(text) for text in SPECIAL[name]}
    assert set(fill_ends(tokenizer, tokens)) == special


@pytest.mark.parametrize(("prefix", "suffix"), [(PREFIX, SUFFIX), ("the king", " had a daughter"), ("", " end")])
def test_the_prompt_of_code_llama_is_that_of_its_tokenizer(prefix: str, suffix: str) -> None:
    tokenizer = code_llama()
    tokens = fill_tokens(tokenizer)
    assert tokens is not None and tokens.middle == tokenizer.middle_token
    expected = code_llama()(prefix, suffix=suffix)["input_ids"]
    assert expected[0] == tokenizer.bos_token_id
    assert fill_prompt(tokenizer, tokens, prefix, suffix) == expected
    assert fill_prompt(tokenizer, tokens, prefix, suffix, add_special_tokens=False) == expected[1:]
    assert tokenizer.eot_id in fill_ends(tokenizer, tokens)


def test_the_suffix_of_code_llama_gets_no_space_before_it() -> None:
    """transformers' class adds one, which the code of the model's authors does not."""
    tokenizer = code_llama()
    tokens = fill_tokens(tokenizer)
    assert tokens is not None
    found = tokenizer.convert_ids_to_tokens(fill_prompt(tokenizer, tokens, "the king", "had a daughter"))
    assert found == ["<s>", "▁<PRE>", "▁t", "he", "▁king", "▁<SUF>", "had", "▁a", "▁daughter", "▁<MID>"]


def test_a_tokenizer_without_all_three_tokens_has_none() -> None:
    assert fill_tokens(byte_level()) is None
    assert fill_tokens(with_tokens("<|fim_prefix|>", "<|fim_suffix|>", "<fim_middle>")) is None
    assert fill_tokens(object()) is None
    assert len({known.middle for known in KNOWN}) == len(KNOWN)

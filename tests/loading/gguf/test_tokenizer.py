"""How the tokenizer of a GGUF file splits text: as the model was trained, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import unspool
from tests.gguf_files import write_gguf
from tests.text.tokenizers import MIXED, byte_level
from tests.tiny_models import tiny_model
from unspool import ModelError

pytest.importorskip("gguf")

TEXTS = [*MIXED, "a\n\n1. one\n\n2. two", "in  2024   and 10,000.50", "it's 5\n\n\n6"]


def with_digits() -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, as in the tokenizer.json of SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=["<|end|>", "<|turn|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*MIXED, "a\n\n1\n\n2  3   4\n\n\n5"] * 2, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>", extra_special_tokens=["<|turn|>"])


def load(path: Path, tokenizer: Any, model: PreTrainedModel, **options: Any) -> Any:
    return unspool.load(write_gguf(path / "x.gguf", model, tokenizer, **options)).tokenizer


def test_digits_are_split_as_in_the_models_own_tokenizer(tmp_path: Path) -> None:
    """White space before a digit is a word of its own: "\\n\\n1" is "\\n\\n", "1" and not "\\n", "\\n", "1"."""
    tokenizer = with_digits()
    model = tiny_model("llama", vocab_size=len(tokenizer), intermediate_size=64)
    found = load(tmp_path, tokenizer, model, pre="smollm")
    for text in TEXTS:
        assert found(text)["input_ids"] == tokenizer(text)["input_ids"], text
        assert found.decode(found(text)["input_ids"]) == text
    as_gpt2 = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()))
    as_gpt2.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert any(as_gpt2(text)["input_ids"] != tokenizer(text)["input_ids"] for text in TEXTS)


@pytest.mark.parametrize("pre", ["gpt-2", "default", None])
def test_the_split_of_gpt2_is_that_of_gpt2(pre: str | None, tiny: PreTrainedModel, tmp_path: Path) -> None:
    found = load(tmp_path, byte_level(), tiny, pre=pre)
    assert [found(text)["input_ids"] for text in TEXTS] == [byte_level()(text)["input_ids"] for text in TEXTS]


@pytest.mark.parametrize("add_bos", [None, True, False])
def test_a_split_of_llama_3_begins_with_bos_unless_the_file_says_otherwise(
    add_bos: bool | None, tiny: PreTrainedModel, tmp_path: Path
) -> None:
    def extend(writer: Any) -> None:
        writer.add_bos_token_id(1)
        if add_bos is not None:
            writer.add_add_bos_token(add_bos)

    found = load(tmp_path, byte_level(), tiny, pre="llama-bpe", extend=extend)
    assert (found("the")["input_ids"][0] == 1) is (add_bos is not False)
    assert found.backend_tokenizer.model.ignore_merges


def test_an_unknown_split_is_refused_unless_a_tokenizer_is_given(tiny: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny, byte_level(), pre="deepseek-llm")
    message = "cannot load the tokenizer of .*x.gguf': its tokenizer splits text as 'deepseek-llm'.*; give `tokenizer=`"
    for _ in range(2):  # converted, and found in the cache
        with pytest.raises(ModelError, match=message):
            unspool.load(path)
    assert unspool.load(path, tokenizer=byte_level()).tokenizer is byte_level()


def test_a_file_without_a_tokenizer_says_so(tiny: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", tiny)
    with pytest.raises(ModelError, match="it has no tokenizer; give `tokenizer=`"):
        unspool.load(path)

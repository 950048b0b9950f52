"""Structured output of models with an encoder: BART's forced first token, and a prompt in the encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

import unspool
from tests.text.tokenizers import byte_level
from unspool.errors import OptionError


@pytest.fixture(scope="module")
def lm() -> unspool.LanguageModel:
    tokenizer = byte_level()
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    turn = tokenizer.convert_tokens_to_ids("<|turn|>")
    config = BartConfig(
        vocab_size=len(tokenizer) + 5,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=128,
        bos_token_id=turn,
        eos_token_id=end,
        pad_token_id=end,
        decoder_start_token_id=end,
        forced_bos_token_id=turn,
        forced_eos_token_id=end,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BartForConditionalGeneration(config).eval()
    model.generation_config.forced_bos_token_id = turn
    model.generation_config.forced_eos_token_id = end
    return unspool.load(model, tokenizer=tokenizer)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "num_return_sequences": 2},
        {"num_beams": 3},
        {"num_beams": 2, "force_words": ["b"]},
        {"best_of": 2},
        {"strategy": "stochastic_beam", "num_beams": 2},
    ],
)
def test_every_output_is_in_the_language_behind_the_forced_first_token(
    lm: unspool.LanguageModel, options: dict[str, Any]
) -> None:
    generation = lm.generate("The king laughed.", regex="[a-c]{4}", max_new_tokens=12, seed=1, **options)
    for completion in generation.completions:
        assert completion.finish_reason == "eos" and completion.unmet is None
        assert len(completion.text) == 4 and set(completion.text) <= set("abc")
        assert completion.parsed == completion.text
        assert lm.tokenizer.decode([completion.token_ids[0]]) == "<|turn|>"


def test_the_stored_forced_end_does_not_end_a_text_that_is_not_complete(lm: unspool.LanguageModel) -> None:
    completion = lm.generate("The king laughed.", regex="[ab]{50}", max_new_tokens=6).completions[0]
    assert completion.finish_reason == "length" and completion.parsed is None
    with pytest.raises(OptionError, match="forced_eos_token_id"):
        end = lm.tokenizer.convert_tokens_to_ids("<|turn|>")
        lm.generate("The king laughed.", regex="[ab]{50}", max_new_tokens=6, forced_eos_token_id=end)


def test_prompts_with_different_grammars_give_what_they_give_alone(lm: unspool.LanguageModel) -> None:
    grammars: list[dict[str, Any]] = [{"regex": "[ab]{3}"}, {"choice": ["cab", "abc"]}, {}]
    prompts = ["The king laughed.", "The queen did not.", "And so on."]
    configs = [unspool.GenerationConfig(**each) for each in grammars]
    together = lm.generate(prompts, config=configs, max_new_tokens=8, num_beams=2)
    for prompt, grammar, generation in zip(prompts, grammars, together, strict=True):
        assert lm.generate(prompt, max_new_tokens=8, num_beams=2, **grammar).text == generation.text

"""A model whose stored token ids lie outside its vocabulary writes what it writes in transformers, at every door."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.errors import OptionError, PromptError

PROMPT = torch.tensor([[5, 6, 7]])
NO_END = pytest.warns(UserWarning, match=r"`eos_token_id` stored in generation_config.*no token ends an output")

IGNORED: dict[str, dict[str, Any]] = {
    "eos above": {"eos_token_id": 50256, "pad_token_id": 0},
    "eos -1": {"eos_token_id": -1, "pad_token_id": -1},
    "some eos": {"eos_token_id": [50256, 2], "pad_token_id": 0},
    "suppressed": {"suppress_tokens": [11, 50256, -1], "begin_suppress_tokens": [12, 50256]},
}
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "minimum": {"min_new_tokens": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def storing(model: Any, values: dict[str, Any]) -> Any:
    """Return a copy of the model whose generation config holds these values."""
    model = copy.deepcopy(model)
    for name, value in values.items():
        setattr(model.generation_config, name, value)
    return model


def quietly(function: Any, *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return function(*args, **options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("case", IGNORED)
def test_every_door_writes_the_tokens_of_transformers(case: str, mode: str) -> None:
    model = storing(tiny_model("llama", seed=5), IGNORED[case])
    options = {"max_new_tokens": 8, **MODES[mode]}
    expected = quietly(model.generate, PROMPT, **options).tolist()
    assert quietly(unspool.generate, model, PROMPT, **options).tolist() == expected
    given = {"generation_config": model.generation_config, **options}
    assert quietly(unspool.generate, model, PROMPT, **given).tolist() == expected
    if mode != "prompt lookup":
        found = quietly(model.generate, PROMPT, custom_generate=unspool.decoding_method, **options)
        assert found.tolist() == expected
    result = quietly(unspool.load(model).generate, PROMPT[0].tolist(), **options)
    for completion, row in zip(result.completions, expected, strict=True):
        assert list(completion.token_ids) == row[3 : 3 + len(completion.token_ids)]


def test_a_config_without_a_generation_config_of_its_own() -> None:
    model = tiny_model("gpt2", bos_token_id=50256, eos_token_id=50256)
    expected = quietly(model.generate, PROMPT, max_new_tokens=5, num_beams=2)
    with NO_END:
        assert unspool.generate(model, PROMPT, max_new_tokens=5, num_beams=2).tolist() == expected.tolist()
    with NO_END:
        result = unspool.load(model).generate(
            [5, 6, 7], max_new_tokens=5, num_beams=4, num_beam_groups=2, diversity_penalty=0.5
        )
    assert result.completions[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("stored", "effect"),
    [
        ({"bad_words_ids": [[50256], [-1], [5, 50256]]}, None),
        ({"sequence_bias": [[[50256], 5.0]]}, None),
        ({"forced_eos_token_id": 50256}, "`forced_eos_token_id` stored"),
        ({"forced_bos_token_id": 50256}, "`forced_bos_token_id` stored"),
    ],
)
def test_what_transformers_fails_on_has_no_effect(stored: dict[str, Any], effect: str | None) -> None:
    plain = tiny_model("llama", seed=5)
    model, prompt = storing(plain, stored), PROMPT[:, :1]
    expected = plain.generate(prompt, max_new_tokens=6).tolist()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert unspool.generate(model, prompt, max_new_tokens=6).tolist() == expected
    assert [effect in str(each.message) for each in caught] == ([True] if effect else [])


def test_an_id_of_the_caller_is_an_error() -> None:
    model = storing(tiny_model("llama", seed=5), {"eos_token_id": 50256})
    with pytest.raises(OptionError, match=rf"`eos_token_id` must hold token ids in \[0, {VOCAB_SIZE}\), got 50257"):
        unspool.generate(model, PROMPT, eos_token_id=50257, strict=True)


def test_a_beginning_outside_the_vocabulary_names_the_stored_attribute() -> None:
    model = tiny_model("gpt2", bos_token_id=50256)
    with pytest.raises(PromptError, match=r"`bos_token_id` stored in model.generation_config .*give a prompt"):
        unspool.generate(model, max_new_tokens=2)
    with pytest.raises(PromptError, match=r"`bos_token_id` stored in model.generation_config .*give a prompt"):
        unspool.load(model, tokenizer=byte_level()).generate("", max_new_tokens=2)
    model = storing(tiny_seq2seq("t5"), {"decoder_start_token_id": 900})
    with pytest.raises(PromptError, match=r"`decoder_start_token_id`, which is stored in model.generation_config"):
        unspool.generate(model, PROMPT, max_new_tokens=2)


def test_a_pipeline_takes_stored_ids_outside_the_vocabulary() -> None:
    tokenizer = byte_level()
    model = storing(tiny_model("llama", vocab_size=len(tokenizer), seed=5), {"eos_token_id": 50256})
    with NO_END:
        (record,) = unspool.pipeline("text-generation", model=model, tokenizer=tokenizer)("Once", max_new_tokens=4)
    assert record["generated_text"].startswith("Once")


def test_an_encoder_decoder_with_stored_ids_outside_the_vocabulary() -> None:
    stored = {"begin_suppress_tokens": [220, 50257], "suppress_tokens": [50257], "eos_token_id": [1, 900]}
    model = storing(tiny_seq2seq("bart"), stored)
    expected = quietly(model.generate, PROMPT, max_new_tokens=6, num_beams=2)
    assert unspool.generate(model, PROMPT, max_new_tokens=6, num_beams=2).tolist() == expected.tolist()

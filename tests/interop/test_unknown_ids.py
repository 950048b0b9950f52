"""Token ids of a caller that the vocabulary lacks, and lengths that do not fit together, as in transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.interop.test_ignored import IDS, MODEL, caught
from tests.tiny_models import VOCAB_SIZE
from unspool.errors import OptionError

BEYOND = VOCAB_SIZE + 5


@pytest.mark.parametrize(
    ("options", "warned"),
    [
        ({"eos_token_id": -1}, None),
        ({"eos_token_id": -1, "pad_token_id": -1}, None),
        ({"eos_token_id": torch.tensor([-1]), "num_beams": 2}, None),
        ({"eos_token_id": [33, BEYOND], "pad_token_id": 0}, "eos_token_id"),
        ({"suppress_tokens": [-1, BEYOND, 40]}, "suppress_tokens"),
        ({"begin_suppress_tokens": [BEYOND, 41]}, "begin_suppress_tokens"),
        ({"generation_config": transformers.GenerationConfig(eos_token_id=-1, max_new_tokens=6)}, None),
        ({"min_length": 30, "eos_token_id": 33, "max_length": 9, "max_new_tokens": None}, "min_length"),
        ({"min_new_tokens": 8}, "min_new_tokens"),
        ({"negative_prompt_ids": IDS}, "negative_prompt_ids"),
    ],
    ids=str,
)
@pytest.mark.parametrize("door", ["drop-in", "decoding method"])
def test_a_call_that_transformers_accepts_gives_its_tokens(
    options: dict[str, Any], warned: str | None, door: str
) -> None:
    call = {"max_new_tokens": 6} | options
    if "generation_config" in options:
        del call["max_new_tokens"]
    expected, _ = caught(MODEL.generate, IDS, **call)
    if door == "drop-in":
        found, ignored = caught(unspool.generate, MODEL, IDS, **call)
    else:
        found, ignored = caught(MODEL.generate, IDS, custom_generate=unspool.decoding_method, **call)
    assert found.equal(expected)
    if warned != "negative_prompt_ids" or door == "drop-in":  # transformers drops these without `guidance_scale`
        assert [f"`{warned}`" in str(each.message) for each in ignored] == ([] if warned is None else [True])


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"eos_token_id": BEYOND}, "eos_token_id"),
        ({"min_new_tokens": 9, "max_new_tokens": 4}, "min_new_tokens"),
        ({"negative_prompt_ids": IDS}, "negative_prompt_ids"),
    ],
    ids=str,
)
def test_strict_raises(options: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as error:
        unspool.generate(MODEL, IDS, strict=True, **options)
    assert error.value.option == option


@pytest.mark.parametrize(
    ("options", "option"),
    [({"forced_eos_token_id": BEYOND}, "forced_eos_token_id"), ({"bad_words_ids": [[-1]]}, "bad_words_ids")],
    ids=str,
)
def test_ids_that_transformers_looks_up_stay_errors(options: dict[str, Any], option: str) -> None:
    with pytest.raises(OptionError) as error:
        unspool.generate(MODEL, IDS, max_new_tokens=3, **options)
    assert error.value.option == option


def test_invalid_values_of_a_broken_model_are_removed_as_in_transformers() -> None:
    with torch.random.fork_rng(devices=[]):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
        model.lm_head.weight[[7, 9]] = torch.nan
        model.lm_head.weight[11] = torch.inf
    model.generation_config.pad_token_id, model.generation_config.eos_token_id = 0, None
    call = {"max_new_tokens": 5, "remove_invalid_values": True, "return_dict_in_generate": True, "output_scores": True}
    for options in ({}, {"suppress_tokens": [11, 0]}):
        found = unspool.generate(model.eval(), IDS, **call, **options)
        expected = model.generate(IDS, **call, **options)
        assert found.sequences.equal(expected.sequences)
        for one, other in zip(found.scores, expected.scores, strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("length", [6, 9, 12])
def test_an_end_is_forced_at_the_options_length_and_a_criterion_ends_at_its_own(length: int) -> None:
    ends = {"forced_eos_token_id": 5, "max_length": 9}
    for eos in (5, 2):
        for beams in (1, 2) if length <= 9 else (1,):  # transformers' beams have no room for more
            call = {**ends, "eos_token_id": eos, "num_beams": beams, "pad_token_id": 0}
            criteria = [transformers.MaxLengthCriteria(length)]
            expected, _ = caught(MODEL.generate, IDS, stopping_criteria=criteria, **call)
            assert unspool.generate(MODEL, IDS, stopping_criteria=criteria, **call).equal(expected), (eos, beams)

"""Which arguments of a call written for transformers are taken, do nothing, or are refused."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import transformers

from unspool.config import GenerationConfig
from unspool.errors import OptionError
from unspool.interop.arguments import NO_EFFECT, REFUSED, read_config, sort_arguments

IDS = torch.tensor([[1, 2]])
NOTHING = GenerationConfig()


def refusal(**arguments: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        sort_arguments(arguments)
    return caught.value


def test_arguments_are_told_from_options():
    found = sort_arguments({"input_ids": IDS, "attention_mask": None, "tokenizer": "t", "top_k": 5, "nonsense": 1})
    assert found.input_ids is IDS and found.attention_mask is None and found.tokenizer == "t"
    assert found.options == {"top_k": 5, "nonsense": 1}


def test_every_named_argument_of_generate_is_known():
    """A parameter that a later transformers adds to `generate` fails here, before it surprises a user."""
    named = set(inspect.signature(transformers.GenerationMixin.generate).parameters) - {"self", "kwargs"}
    read = {"inputs", "generation_config", "negative_prompt_ids", "negative_prompt_attention_mask", "assistant_model"}
    objects = {"logits_processor", "stopping_criteria", "prefix_allowed_tokens_fn", "streamer"}
    assert named <= read | objects | set(REFUSED)


def test_objects_of_transformers_are_told_from_options():
    streamer, criteria = object(), transformers.StoppingCriteriaList([transformers.EosTokenCriteria(3)])
    found = sort_arguments({"logits_processor": [print], "stopping_criteria": criteria, "streamer": streamer})
    assert found.logits_processor == (print,) and found.stopping_criteria == tuple(criteria)
    assert found.streamer is streamer and found.prefix_allowed_tokens_fn is None and found.options == {}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_had_is_refused_by_name_unless_it_asks_for_nothing(name: str):
    error = refusal(**{name: torch.ones(1, 1)})
    assert error.option == name and error.hint and "tensor(" not in str(error)
    for neutral in (None, False, []):
        assert sort_arguments({name: neutral}).options == {}


@pytest.mark.parametrize(
    ("arguments", "option"),
    [
        ({"logits_processor": transformers.TemperatureLogitsWarper(0.5)}, "logits_processor"),
        ({"logits_processor": [0.5]}, "logits_processor"),
        ({"stopping_criteria": transformers.EosTokenCriteria(3)}, "stopping_criteria"),
        ({"stopping_criteria": ["stop"]}, "stopping_criteria"),
        ({"prefix_allowed_tokens_fn": [1, 2]}, "prefix_allowed_tokens_fn"),
        ({"synced_gpus": True}, "synced_gpus"),
        ({"custom_generate": "someone/something"}, "custom_generate"),
        ({"inputs": IDS, "input_ids": IDS}, "inputs"),
        ({"attention_mask": IDS}, "attention_mask"),
        ({"position_ids": IDS}, "position_ids"),
    ],
)
def test_refused(arguments: dict[str, Any], option: str):
    assert refusal(**arguments).option == option


@pytest.mark.parametrize(
    "arguments",
    [
        {
            "logits_processor": transformers.LogitsProcessorList(),
            "stopping_criteria": transformers.StoppingCriteriaList(),
        },
        {"synced_gpus": False, "streamer": None},
        dict.fromkeys(NO_EFFECT, 1),
    ],
    ids=["empty lists", "neutral", "without effect"],
)
def test_accepted(arguments: dict[str, Any]):
    assert sort_arguments({"inputs": IDS, **arguments}).options == {}
    assert sort_arguments({"inputs": IDS, **arguments}).input_ids is IDS


def test_a_config_is_taken_from_either_library():
    ours = GenerationConfig(top_k=3)
    assert read_config(None, NOTHING) is None
    assert read_config(ours, NOTHING) is ours
    theirs = read_config(transformers.GenerationConfig(top_k=3, use_cache=False), NOTHING)
    assert theirs is not None and theirs.top_k == 3 and "max_length" not in theirs.explicit


@pytest.mark.parametrize("given", [{"top_k": 3}, "greedy", 7])
def test_nothing_else_is_a_config(given: Any):
    with pytest.raises(OptionError) as caught:
        read_config(given, NOTHING)
    assert caught.value.option == "generation_config"


def test_an_attribute_that_nothing_reads_is_refused_unless_the_model_has_it_too():
    config = transformers.GenerationConfig()
    config.top_kk = 5
    with pytest.raises(OptionError) as caught:
        read_config(config, NOTHING)
    assert caught.value.option == "top_kk" and "top_k" in caught.value.hint
    assert read_config(config, GenerationConfig.from_transformers(config)) is not None

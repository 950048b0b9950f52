"""Lists as one value per prompt: each result is the one that its own options give alone."""

from __future__ import annotations

from typing import Any

import pytest

from tests.speakers import recite
from tests.toys import mixing_toy
from unspool import GenerationConfig, LanguageModel, OptionError
from unspool.config import OPTIONS
from unspool.inputs.prompts import read_prompts
from unspool.per_prompt import group_prompts

PROMPTS = [[1, 2], [3], [4, 5, 6]]


def tokens(generation: Any) -> tuple[int, ...]:
    return tuple(generation.completions[0].token_ids)


def test_a_list_is_one_value_per_prompt() -> None:
    lm = LanguageModel(mixing_toy())
    own = [{"temperature": 0.2, "max_new_tokens": 3, "seed": 7}, {"temperature": None, "max_new_tokens": 4, "seed": 8},
           {"temperature": 1.5, "max_new_tokens": 5, "seed": 9}]  # fmt: skip
    lists = {name: [options[name] for options in own] for name in own[0]}
    found = lm.generate(PROMPTS, **lists)
    assert [each.strategy for each in found] == ["sample", "greedy", "sample"]
    for prompt, options, each in zip(PROMPTS, own, found, strict=True):
        alone = lm.generate(prompt, **options)
        assert (tokens(each), each.seed, each.config) == (tokens(alone), options["seed"], alone.config)


def test_strategies_per_prompt_share_the_running_batch() -> None:
    runtime, batches = mixing_toy(), list[int]()
    forward = runtime.forward

    def counted(feeds: Any) -> Any:
        batches.append(len(feeds))
        return forward(feeds)

    runtime.forward = counted  # type: ignore[method-assign]
    lm = LanguageModel(runtime)
    found = lm.generate(PROMPTS, strategy=["greedy", "beam", "sample"], num_beams=[1, 3, 1], max_new_tokens=6, seed=1)
    assert [each.strategy for each in found] == ["greedy", "beam", "sample"]
    assert len(batches) <= 7, "one pass per token, whatever the strategies"


def test_a_list_of_configs_has_one_per_prompt_below_the_options_of_the_call() -> None:
    lm = recite("one two three")
    configs = [GenerationConfig(stop_strings=["two"]), None, GenerationConfig(stop_strings=["three"], max_new_tokens=2)]
    found = lm.generate(["a\n", "b\n", "c\n"], config=configs, max_new_tokens=100)
    assert [each.text for each in found] == ["one ", "one two three", "one two "]
    short = lm.generate(["a\n", "c\n"], config=configs[::2])
    assert short[1].usage.completion_tokens == 2


def test_streams_and_next_tokens_and_chats_read_lists_as_well() -> None:
    lm = LanguageModel(mixing_toy())
    options: dict[str, Any] = {"max_new_tokens": [2, 3, 4], "do_sample": [True, False, True], "seed": [1, 2, 3]}
    stream = lm.stream(PROMPTS, **options)
    list(stream)
    whole = lm.generate(PROMPTS, **options)
    assert [tokens(each) for each in stream.generations] == [tokens(each) for each in whole]
    near, far = lm.next_tokens([[1, 2], [1, 2]], temperature=[0.5, 2.0])
    assert near[0].processed_probability > far[0].processed_probability


def test_seeds_of_a_shared_config_follow_their_prompts() -> None:
    lm = LanguageModel(mixing_toy())
    found = lm.generate(PROMPTS, config=GenerationConfig(seed=[4, 5, 6]), temperature=[0.5, 1.0, 1.5])
    assert [each.seed for each in found] == [4, 5, 6]


@pytest.mark.parametrize(
    ("options", "option", "message"),
    [
        ({"temperature": [0.5, 1.0]}, "temperature", "for each of the 3 prompts (the list has 2)"),
        ({"temperature": []}, "temperature", "(the list has 0)"),
        ({"config": [None, None]}, "config", "(the list has 2)"),
        ({"seed": [1, 2], "top_k": [1, 2, 3]}, "seed", "(the list has 2)"),
        ({"temperature": [0.5, -1.0, 0.5]}, "temperature", "of prompt 1 must be 0 or in"),
        ({"top_k": [1, True, 3]}, "top_k", "of prompt 1 must be an integer"),
        ({"config": [None, {"top_k": 3}, None]}, "config", "of prompt 1 must be an unspool.GenerationConfig"),
        ({"config": "greedy"}, "config", "must be an unspool.GenerationConfig"),
        ({"eos_token_id": [[1], [2], [3]]}, "eos_token_id", "use config=[GenerationConfig(eos_token_id=...), ...]"),
        ({"stop_strings": [["a"], ["b"], ["c"]]}, "stop_strings", "a list is one value for all prompts"),
    ],
)
def test_a_list_that_does_not_fit_is_refused_by_name(options: dict[str, Any], option: str, message: str) -> None:
    with pytest.raises(OptionError) as refused:
        LanguageModel(mixing_toy()).generate(PROMPTS, **options)
    assert refused.value.option == option
    assert message in str(refused.value)


@pytest.mark.parametrize("options", [{"temperature": [0.5]}, {"config": [GenerationConfig()]}])
def test_one_prompt_takes_one_value(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="for one prompt.*give a list of prompts"):
        LanguageModel(mixing_toy()).generate([1, 2], **options)
    LanguageModel(mixing_toy()).generate([[1, 2]], max_new_tokens=1, **options)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_list_is_a_value_exactly_if_the_option_takes_lists(name: str) -> None:
    """No option is ambiguous: a list that is one value stays whole, every other list is divided."""
    values = [[1, 2], ["a", "b"], [[1], [2]], [[[1], 2.0], [[2], 1.0]], ["temperature", "top_k"], (5, 1.1)]

    def accepted(value: Any) -> bool:
        try:
            OPTIONS[name].check(value)
        except OptionError:
            return False
        return True

    assert OPTIONS[name].takes_lists == any(map(accepted, values))
    groups = group_prompts(
        read_prompts([[1], [2]]), None, {name: [None, None]} if not OPTIONS[name].takes_lists else {}
    )
    assert len(groups) == (1 if OPTIONS[name].takes_lists else 2)


def test_an_error_about_a_long_list_stays_short() -> None:
    with pytest.raises(OptionError) as refused:
        LanguageModel(mixing_toy()).generate(PROMPTS, temperature=[0.5] * 10_000)
    assert len(str(refused.value)) < 500 and len(refused.value.given) == 10_000

"""POST /v1/completions, by OpenAI's own client, against results in Python."""

from __future__ import annotations

from typing import Any

import openai
import pytest

import unspool
from unspool import config

pytestmark = pytest.mark.model

PROMPT = "Once upon a time"

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sample": {"temperature": 0.9, "top_p": 0.9, "seed": 11},
    "min_p": {"extra_body": {"min_p": 0.1}, "seed": 12},
    "beam": {"extra_body": {"num_beams": 3}},
    "beams": {"n": 2, "extra_body": {"num_beams": 3, "length_penalty": 0.5}},
    "diverse": {"extra_body": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}},
    "contrastive": {"extra_body": {"penalty_alpha": 0.6, "top_k": 4}},
    "forced": {"extra_body": {"force_words": ["king"], "num_beams": 3}},
    "lookahead": {"extra_body": {"num_beams": 2, "lookahead_steps": 1}},
    "assisted": {"temperature": 0, "extra_body": {"assistant": "draft"}},
    "best of": {"best_of": 3, "seed": 5},
    "penalties": {"temperature": 0, "presence_penalty": 0.7, "frequency_penalty": 0.4},
    "guided": {"temperature": 0, "extra_body": {"guidance_scale": 1.5, "negative_prompt": "The"}},
    "beam sample": {"temperature": 0.8, "seed": 4, "extra_body": {"num_beams": 3, "do_sample": True}},
    "stochastic": {"seed": 6, "extra_body": {"strategy": "stochastic_beam", "num_beams": 3}},
    "dola": {"temperature": 0, "extra_body": {"dola_layers": "low"}},
    "prompt lookup": {"temperature": 0, "extra_body": {"prompt_lookup_num_tokens": 3}},
    "grammar": {"seed": 9, "extra_body": {"structured_outputs": {"regex": " [a-z]+ [a-z]+"}}},
    "beams of a grammar": {"extra_body": {"num_beams": 2, "json_schema": {"type": "integer", "maximum": 99}}},
}
NATIVE: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "seed": 11},
    "min_p": {"do_sample": True, "min_p": 0.1, "seed": 12},
    "beam": {"num_beams": 3},
    "beams": {"num_beams": 3, "length_penalty": 0.5, "num_return_sequences": 2},
    "diverse": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "forced": {"force_words": ["king"], "num_beams": 3},
    "lookahead": {"num_beams": 2, "lookahead_steps": 1},
    "assisted": {"assistant_model": None},
    "best of": {"best_of": 3, "seed": 5},
    "penalties": {"presence_penalty": 0.7, "frequency_penalty": 0.4},
    "guided": {"guidance_scale": 1.5, "negative_prompt": "The"},
    "beam sample": {"num_beams": 3, "do_sample": True, "temperature": 0.8, "seed": 4},
    "stochastic": {"strategy": "stochastic_beam", "num_beams": 3, "seed": 6},
    "dola": {"dola_layers": "low"},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
    "grammar": {"do_sample": True, "seed": 9, "regex": " [a-z]+ [a-z]+"},
    "beams of a grammar": {"num_beams": 2, "json_schema": {"type": "integer", "maximum": 99}},
}


def test_the_table_has_every_strategy(client: openai.OpenAI) -> None:
    called = set()
    for fields in STRATEGIES.values():
        (choice, *_) = client.completions.create(model="tale", prompt=PROMPT, max_tokens=2, **fields).choices
        assert choice.model_extra is not None
        called.add(choice.model_extra["unspool"]["strategy"])
    assert called == set(config.STRATEGIES)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_gives_the_texts_of_python(
    client: openai.OpenAI, tale: unspool.LanguageModel, name: str
) -> None:
    answer = client.completions.create(model="tale", prompt=PROMPT, max_tokens=10, **STRATEGIES[name])
    expected = tale.generate(PROMPT, max_new_tokens=10, **NATIVE[name])
    assert [choice.text for choice in answer.choices] == [each.text for each in expected.completions]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == expected.usage.prompt_tokens
    assert answer.usage.completion_tokens == expected.usage.completion_tokens


@pytest.mark.parametrize("name", sorted(STRATEGIES.keys() - {"best of"}))
def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI, name: str) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": PROMPT, "max_tokens": 10, **STRATEGIES[name]}
    whole = client.completions.create(**call)
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in client.completions.create(**call, stream=True):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + choice.text
            if choice.finish_reason:
                reasons[choice.index] = choice.finish_reason
    assert [texts[choice.index] for choice in whole.choices] == [choice.text for choice in whole.choices]
    assert [reasons[choice.index] for choice in whole.choices] == [choice.finish_reason for choice in whole.choices]


def test_prompts_are_texts_or_ids_alone_or_in_lists(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    ids = list(tale.generate(PROMPT, max_new_tokens=1).prompt_token_ids)
    other = list(tale.generate("The king", max_new_tokens=1).prompt_token_ids)
    alone = [
        client.completions.create(model="tale", prompt=given, max_tokens=5, temperature=0).choices[0].text
        for given in (PROMPT, ids, "The king")
    ]
    assert alone[0] == alone[1]
    for given in ([PROMPT, "The king"], [ids, other]):
        answer = client.completions.create(model="tale", prompt=given, max_tokens=5, temperature=0)
        assert [choice.text for choice in answer.choices] == [alone[0], alone[2]]
        assert [choice.index for choice in answer.choices] == [0, 1]
    several = client.completions.create(model="tale", prompt=[PROMPT, "The king"], max_tokens=4, n=2, seed=3)
    assert [choice.index for choice in several.choices] == [0, 1, 2, 3]


def test_echo_with_logprobs_has_the_models_own_figures(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    answer = client.completions.create(
        model="tale", prompt=PROMPT, max_tokens=4, temperature=0, echo=True, logprobs=3, frequency_penalty=1.5
    )
    choice, expected = answer.choices[0], tale.score(PROMPT, " there")
    logprobs = choice.logprobs
    assert logprobs is not None and logprobs.token_logprobs and logprobs.top_logprobs and logprobs.text_offset
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    assert choice.text.startswith(PROMPT)
    first_new = len(logprobs.token_logprobs) - 4
    assert logprobs.tokens is not None and logprobs.tokens[first_new] == " there"
    assert logprobs.token_logprobs[first_new] == pytest.approx(expected.logprobs[0], abs=1e-5)
    for token, logprob, best in list(zip(logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True))[
        1:
    ]:
        assert best[token] == logprob, "the same float in both arrays"
        assert len(best) in (3, 4)
    assert logprobs.text_offset == sorted(logprobs.text_offset)
    for token, offset in list(zip(logprobs.tokens, logprobs.text_offset, strict=True))[1:]:
        assert choice.text[offset:].startswith(token)


def test_zero_tokens_with_echo_score_the_prompt_only(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="tale", prompt=PROMPT, max_tokens=0, echo=True, logprobs=0)
    choice = answer.choices[0]
    assert choice.text == PROMPT and answer.usage is not None and answer.usage.completion_tokens == 0
    assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
    assert len(choice.logprobs.token_logprobs) == answer.usage.prompt_tokens
    with pytest.raises(openai.BadRequestError, match="without `echo`"):
        client.completions.create(model="tale", prompt=PROMPT, max_tokens=0)


def test_streamed_logprobs_equal_the_whole_ones(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "logprobs": 2}
    for more in ({}, {"echo": True}):
        whole = client.completions.create(**call, **more).choices[0].logprobs
        assert whole is not None
        parts = [
            chunk.choices[0].logprobs
            for chunk in client.completions.create(**call, **more, stream=True)
            if chunk.choices and chunk.choices[0].logprobs
        ]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            assert [each for part in parts for each in getattr(part, name) or ()] == getattr(whole, name)


def test_the_usage_of_a_stream_comes_only_if_asked_for(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "stream": True}
    plain = list(client.completions.create(**call))
    assert all(chunk.usage is None and chunk.choices for chunk in plain)
    counted = list(client.completions.create(**call, stream_options={"include_usage": True}))
    assert not counted[-1].choices and counted[-1].usage is not None
    assert counted[-1].usage.completion_tokens == 3 and all(chunk.usage is None for chunk in counted[:-1])
    with pytest.raises(openai.BadRequestError, match="stream_options"):
        client.completions.create(model="tale", prompt=PROMPT, stream_options={"include_usage": True})


def test_a_stop_string_is_not_part_of_the_text(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    free = tale.generate(PROMPT, max_new_tokens=12).text
    stop = free.split()[3]
    answer = client.completions.create(model="tale", prompt=PROMPT, max_tokens=12, temperature=0, stop=["zzz", stop])
    choice = answer.choices[0]
    assert choice.text == free[: free.index(stop)] and choice.finish_reason == "stop"
    assert choice.model_extra is not None and choice.model_extra["stop_reason"] == stop


def test_beams_stream_tentative_text_beside_the_final_one(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": PROMPT, "max_tokens": 8, "stream": True}
    chunks = list(client.completions.create(**call, extra_body={"num_beams": 3, "tentative": True}))
    extras = [chunk.choices[0].model_extra or {} for chunk in chunks]
    assert any(each.get("unspool", {}).get("tentative") for each in extras)
    plain = "".join(chunk.choices[0].text for chunk in client.completions.create(**call, extra_body={"num_beams": 3}))
    assert "".join(chunk.choices[0].text for chunk in chunks) == plain

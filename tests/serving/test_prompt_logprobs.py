"""`prompt_logprobs`, vLLM's field, against `lm.score` and a log-softmax of transformers."""

from __future__ import annotations

from typing import Any

import openai
import pytest
import torch

import unspool

pytestmark = pytest.mark.model

PROMPT = "Once upon a time there was a king"


def entries_of(given: Any) -> list[dict[int, Any]]:
    """Return the entries after the first one, which must be None, with integers as keys."""
    assert given[0] is None
    return [{int(token): figures for token, figures in entry.items()} for entry in given[1:]]


def expected_of(reference: Any, ids: list[int]) -> torch.Tensor:
    """Return transformers' log-probabilities after each prompt token. --> [tokens, vocab]"""
    with torch.no_grad():
        logits: torch.Tensor = reference(torch.tensor([ids])).logits[0]
    return logits.double().log_softmax(-1)


@pytest.mark.parametrize("count", [0, 1, 5])
@pytest.mark.parametrize("more", [{}, {"echo": True, "logprobs": 2}, {"n": 2, "seed": 1}], ids=["plain", "echo", "n"])
def test_figures_of_a_prompt_are_those_of_transformers(
    client: openai.OpenAI, tale: unspool.LanguageModel, reference: Any, count: int, more: dict[str, Any]
) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": PROMPT, "max_tokens": 2, **more}
    answer = client.completions.create(**call, extra_body={"prompt_logprobs": count, "return_token_ids": True})
    assert len(answer.choices) == more.get("n", 1)
    for choice in answer.choices:
        extra: Any = choice.model_extra
        ids = extra["prompt_token_ids"]
        expected, scores = expected_of(reference, ids), tale.score(ids[:1], ids[1:])
        found = entries_of(extra["prompt_logprobs"])
        assert len(found) == len(ids) - 1
        own = [entry[token]["logprob"] for entry, token in zip(found, ids[1:], strict=True)]
        assert own == pytest.approx(list(scores.logprobs), abs=1e-4)
        for entry, token, row in zip(found, ids[1:], expected, strict=False):
            order = row.argsort(descending=True).tolist()
            assert set(entry) == {token, *order[:count]}
            for each, figures in entry.items():
                assert figures["logprob"] == pytest.approx(float(row[each]), abs=1e-4)
                assert figures["rank"] == order.index(each) + 1
                assert figures["decoded_token"] == tale.tokenizer.decode([each])
        if "logprobs" in more:
            assert choice.logprobs is not None and choice.logprobs.token_logprobs is not None
            assert choice.logprobs.token_logprobs[1 : len(ids)] == own, "the figures of `echo` are the same"
            assert choice.logprobs.top_logprobs is not None
            assert all(len(top) <= 3 for top in choice.logprobs.top_logprobs[1:])


def test_each_prompt_has_its_own_figures(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    prompts = ["The king", "A fox and a goose went", "I"]
    body = {"prompt_logprobs": 1, "num_beams": 2}
    answer = client.completions.create(model="tale", prompt=prompts, max_tokens=2, extra_body=body)
    for prompt, choice in zip(prompts, answer.choices, strict=True):
        extra: Any = choice.model_extra
        ids = tale.tokenizer(prompt)["input_ids"]
        scored = list(tale.score(ids[:1], ids[1:]).logprobs)
        assert [next(iter(entry.values()))["logprob"] for entry in entries_of(extra["prompt_logprobs"])] == (
            pytest.approx(scored, abs=1e-4)
        )


def test_a_chat_answer_has_them_beside_its_choices(client: openai.OpenAI, reference: Any) -> None:
    messages: Any = [{"role": "user", "content": "Tell me of a king."}]
    body = {"prompt_logprobs": 2, "return_token_ids": True}
    answer = client.chat.completions.create(model="tale", messages=messages, max_tokens=2, n=2, extra_body=body)
    extra, of_choice = answer.model_extra, answer.choices[0].model_extra
    assert extra is not None and of_choice is not None and "prompt_logprobs" not in of_choice
    ids = of_choice["prompt_token_ids"]
    found, expected = entries_of(extra["prompt_logprobs"]), expected_of(reference, ids)
    for entry, token, row in zip(found, ids[1:], expected, strict=False):
        assert entry[token]["logprob"] == pytest.approx(float(row[token]), abs=1e-4)
        assert 2 <= len(entry) <= 3
    same = client.chat.completions.create(model="tale", messages=messages, max_tokens=2, seed=1)
    assert "prompt_logprobs" not in (same.model_extra or {})


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"prompt_logprobs": 21}, "between 0 and 20"),
        ({"prompt_logprobs": -1}, "between 0 and 20"),
        ({"prompt_logprobs": True}, "integer"),
        ({"prompt_logprobs": 0, "stream": True}, "cannot be streamed"),
    ],
)
@pytest.mark.parametrize("route", ["completions", "chat"])
def test_wrong_values_and_streams_are_refused(
    client: openai.OpenAI, given: dict[str, Any], told: str, route: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=told) as caught:
        if route == "chat":
            client.chat.completions.create(model="tale", messages=[{"role": "user", "content": "x"}], extra_body=given)
        else:
            client.completions.create(model="tale", prompt="x", extra_body=given)
    assert caught.value.param == "prompt_logprobs"


@pytest.mark.parametrize(
    "given", [{"prompt_logprobs": 0}, {"n": 2}, {"logprobs": True}, {"top_logprobs": 2}, {"tentative": True}]
)
def test_a_response_refuses_fields_without_a_place_in_it(client: openai.OpenAI, given: dict[str, Any]) -> None:
    """They were accepted, and changed nothing; with `n`, the texts of a stream were mixed."""
    with pytest.raises(openai.BadRequestError, match="does not fit into a response") as caught:
        client.responses.create(model="tale", input="x", extra_body=given)
    assert caught.value.param == next(iter(given))
    neutral: Any = {"n": 1, "logprobs": False, "top_logprobs": 0, "tentative": False, "prompt_logprobs": None}
    client.responses.create(model="tale", input="x", max_output_tokens=1, extra_body=neutral)

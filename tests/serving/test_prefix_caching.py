"""Prefix caching over HTTP: `cached_tokens` in the usage of every route, separated by API key and by salt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

import unspool
from tests.serving.conftest import TEMPLATE, serving
from tests.serving.test_tools import RESPONSE

pytestmark = pytest.mark.model

TALE = "Once upon a time there was a king who had three sons, and the youngest of them was called"
ASKED: list[Any] = [{"role": "user", "content": TALE}]


@pytest.fixture
def lm() -> unspool.LanguageModel:
    """The embedded model with an empty cache, a chat template and a response template."""
    lm = unspool.load()
    lm.tokenizer.chat_template, lm.tokenizer.response_template = TEMPLATE, {**RESPONSE, "start_anchor": "assistant:"}
    return lm


@pytest.fixture
def client(lm: unspool.LanguageModel) -> Iterator[openai.OpenAI]:
    with (
        serving(lm, served_model_name=("tale",)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def usages(client: openai.OpenAI, **more: Any) -> list[Any]:
    """Return the usage of equal requests on each route: whole completion, streamed, whole chat, streamed, response."""
    common: dict[str, Any] = {"model": "tale", "max_tokens": 3, "temperature": 0, **more}
    streamed: dict[str, Any] = {**common, "stream": True, "stream_options": {"include_usage": True}}
    found: list[Any] = [
        client.completions.create(prompt=TALE, **common).usage,
        list(client.completions.create(prompt=TALE, **streamed))[-1].usage,
        client.chat.completions.create(messages=ASKED, **common).usage,
        list(client.chat.completions.create(messages=ASKED, **streamed))[-1].usage,
    ]
    del common["max_tokens"]
    found.append(client.responses.create(input=TALE, max_output_tokens=3, **common).usage)
    return found


def cached(usage: Any) -> int:
    details = getattr(usage, "prompt_tokens_details", None) or usage.input_tokens_details
    return int(details.cached_tokens)


def test_usage_counts_cached_tokens_on_every_route(client: openai.OpenAI) -> None:
    first, *rest = usages(client)
    assert cached(first) == 0
    assert first.prompt_tokens_details.to_dict() == {"cached_tokens": 0}
    assert first.completion_tokens_details.reasoning_tokens == 0
    # The last token of a prompt is always computed, because its logits are needed.
    assert cached(rest[0]) == first.prompt_tokens - 1
    assert cached(rest[1]) == 0, "the template puts other tokens before the text"
    assert cached(rest[2]) == cached(rest[3]) == rest[1].prompt_tokens - 1
    assert rest[3].input_tokens == rest[1].prompt_tokens


def test_several_prompts_count_together(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": [TALE, TALE], "max_tokens": 1, "temperature": 0}
    usage = client.completions.create(**call).usage
    assert usage is not None and cached(usage) == usage.prompt_tokens // 2 - 1, "the second one reuses the first"
    usage = client.completions.create(**call, n=1).usage
    assert cached(usage) == sum([usage.prompt_tokens // 2 - 1] * 2)  # type: ignore[union-attr]


def test_two_salts_share_no_prefix_and_one_does(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": TALE, "max_tokens": 1, "temperature": 0}
    found = {}
    for salt in ("", "ann", "bob", "ann", "", "bob"):
        usage = client.completions.create(**call, extra_body={"cache_salt": salt}).usage
        assert usage is not None
        known = salt in found
        assert cached(usage) == (usage.prompt_tokens - 1 if known else 0), salt
        found[salt] = usage
    chat = client.chat.completions.create(model="tale", messages=ASKED, max_tokens=1, extra_body={"cache_salt": "ann"})
    assert cached(chat.usage) == 0
    again = client.responses.create(model="tale", input=TALE, max_output_tokens=1, extra_body={"cache_salt": "ann"})
    assert cached(again.usage) > 0
    other = client.responses.create(model="tale", input=TALE, max_output_tokens=1, extra_body={"cache_salt": "eve"})
    assert cached(other.usage) == 0


def test_keys_share_no_prefix_if_they_are_set(lm: unspool.LanguageModel) -> None:
    call: dict[str, Any] = {"model": "tale", "prompt": TALE, "max_tokens": 1, "temperature": 0}
    with serving(lm, served_model_name=("tale",), api_key=("one", "two")) as (address, _):
        clients = [openai.OpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) for key in ("one", "two")]
        for salt in ({}, {"cache_salt": "one/"}, {"cache_salt": "s"}):
            for made in clients:
                usage = made.completions.create(**call, extra_body=salt).usage
                assert usage is not None and cached(usage) == 0
            for made in clients:
                usage = made.completions.create(**call, extra_body=salt).usage
                assert usage is not None and cached(usage) == usage.prompt_tokens - 1
        for made in clients:
            made.close()
    # Python's own calls have another salt, too.
    assert lm.generate(TALE, max_new_tokens=1).usage.cached_tokens == 0


@pytest.mark.parametrize(("text", "least", "most"), [("<think>Rome is far.</think>Go.", 4, 8), ("It is warm.", 0, 0)])
def test_usage_counts_the_tokens_of_the_reasoning(
    client: openai.OpenAI, lm: unspool.LanguageModel, text: str, least: int, most: int
) -> None:
    call: dict[str, Any] = {
        "model": "tale", "messages": ASKED, "temperature": 0, "max_tokens": 100,
        "extra_body": {"structured_outputs": {"choice": [text]}},
    }  # fmt: skip
    whole = client.chat.completions.create(**call).usage
    assert whole is not None and whole.completion_tokens_details is not None
    count = whole.completion_tokens_details.reasoning_tokens
    assert count is not None and least <= count <= most
    stop = {"stop": ["zzz"]}  # the parts of an answer with a stop string are known at its end
    for more in ({}, stop):
        streamed = list(
            client.chat.completions.create(**call, **more, stream=True, stream_options={"include_usage": True})
        )[-1].usage
        assert streamed is not None
        assert streamed.completion_tokens_details == whole.completion_tokens_details
        assert streamed.completion_tokens == whole.completion_tokens
    response = client.responses.create(
        model="tale", input=TALE, max_output_tokens=100, temperature=0, extra_body=call["extra_body"]
    )
    assert response.usage is not None and response.usage.output_tokens_details.reasoning_tokens == count

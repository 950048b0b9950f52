"""POST /v1/chat/completions, by OpenAI's own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest

import unspool

pytestmark = pytest.mark.model

MESSAGES: list[Any] = [{"role": "system", "content": "Tell tales."}, {"role": "user", "content": "A king had"}]


def test_an_answer_equals_that_of_python(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    answer = client.chat.completions.create(model="tale", messages=MESSAGES, max_tokens=12, temperature=0)
    expected = tale.chat(MESSAGES, max_new_tokens=12)
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage is not None and answer.usage.prompt_tokens == expected.usage.prompt_tokens
    sampled = client.chat.completions.create(model="tale", messages=MESSAGES, max_tokens=12, seed=8, n=2)
    expected = tale.chat(MESSAGES, max_new_tokens=12, seed=8, do_sample=True, num_return_sequences=2)
    assert [choice.message.content for choice in sampled.choices] == list(expected.texts)


@pytest.mark.parametrize("more", [{"temperature": 0}, {"seed": 3, "n": 2}, {"extra_body": {"num_beams": 3}}])
def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI, more: dict[str, Any]) -> None:
    call: dict[str, Any] = {"model": "tale", "messages": MESSAGES, "max_tokens": 10, **more}
    whole = client.chat.completions.create(**call)
    texts: dict[int, str] = {}
    roles: dict[int, str] = {}
    reasons: dict[int, str] = {}
    chunks = list(client.chat.completions.create(**call, stream=True))
    for chunk in chunks:
        (choice,) = chunk.choices
        if choice.delta.role:
            roles[choice.index] = choice.delta.role
        texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        if choice.finish_reason:
            reasons[choice.index] = choice.finish_reason
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    for choice in whole.choices:
        assert texts[choice.index] == choice.message.content
        assert roles[choice.index] == "assistant" and reasons[choice.index] == choice.finish_reason


def test_the_async_client_and_its_stream_helper_work(address: str, client: openai.OpenAI) -> None:
    async def talk() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made:
            call: dict[str, Any] = {"model": "tale", "messages": MESSAGES, "temperature": 0, "stop": [",", "."]}
            whole = await made.chat.completions.create(**call)
            async with made.chat.completions.stream(**call) as stream:
                async for _ in stream:
                    pass
                final = await stream.get_final_completion()
            return whole.choices[0].message.content or "", final.choices[0].message.content or ""

    whole, streamed = asyncio.run(talk())
    assert whole == streamed != ""


def test_logprobs_have_bytes_and_alternatives(client: openai.OpenAI) -> None:
    call: dict[str, Any] = {"model": "tale", "messages": MESSAGES, "max_tokens": 6, "temperature": 0}
    answer = client.chat.completions.create(**call, logprobs=True, top_logprobs=3)
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    assert len(logprobs.content) == 6
    for entry in logprobs.content:
        assert bytes(entry.bytes or ()).decode() == entry.token
        assert entry.top_logprobs[0].token == entry.token and entry.top_logprobs[0].logprob == entry.logprob
    streamed = [
        each
        for chunk in client.chat.completions.create(**call, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for each in chunk.choices[0].logprobs.content or ()
    ]
    assert streamed == logprobs.content
    with pytest.raises(openai.BadRequestError, match="top_logprobs"):
        client.chat.completions.create(**call, top_logprobs=3)


def test_content_can_be_parts_and_developer_is_system(client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": [{"type": "text", "text": "Tell "}, {"type": "text", "text": "tales."}]},
        {"role": "user", "content": "A king had", "messageId": 7},
    ]
    found = [
        client.chat.completions.create(model="tale", messages=given, max_tokens=6, temperature=0)
        for given in (MESSAGES, parts)
    ]
    assert found[0].choices[0].message == found[1].choices[0].message
    assert found[0].usage == found[1].usage


def test_the_last_message_can_be_continued(client: openai.OpenAI, tale: unspool.LanguageModel) -> None:
    messages: list[Any] = [*MESSAGES, {"role": "assistant", "content": "There was a"}]
    body = {"continue_final_message": True, "add_generation_prompt": False}
    answer = client.chat.completions.create(
        model="tale", messages=messages, max_tokens=5, temperature=0, extra_body=body
    )
    expected = tale.chat(messages, continue_final_message=True, max_new_tokens=5)
    assert answer.choices[0].message.content == expected.text


@pytest.mark.parametrize(
    ("messages", "param"),
    [
        ([], "messages"),
        ([{"role": "boss", "content": "hi"}], "messages.0.role"),
        ([{"role": "user", "content": 3}], "messages.0.content"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}], "messages.0.content.0"),
        ([{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
         "messages.0.tool_calls.0.function.arguments"),
    ],
)  # fmt: skip
def test_a_wrong_message_is_named(client: openai.OpenAI, messages: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tale", messages=messages)
    assert caught.value.param == param


def test_tools_need_a_template_that_takes_them(client: openai.OpenAI) -> None:
    tools: list[Any] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}]
    with pytest.raises(openai.BadRequestError, match="does not take tools"):
        client.chat.completions.create(model="tale", messages=MESSAGES, tools=tools)
    with pytest.raises(openai.BadRequestError, match="at least one tool"):
        client.chat.completions.create(model="tale", messages=MESSAGES, tools=[])
    answer = client.chat.completions.create(
        model="tale", messages=MESSAGES, max_tokens=2, temperature=0, tool_choice="none"
    )
    assert json.loads(answer.to_json())["choices"][0]["message"]["content"]

"""POST /v1/responses, by OpenAI's own client, against the chat route."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from tests.serving.test_tools import CALL, TOOLS, client

__all__ = ["client"]

pytestmark = pytest.mark.model

FLAT: list[Any] = [{"type": "function", **TOOLS[0]["function"]}, {"type": "web_search"}]
MESSAGES: list[Any] = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "The weather?"}]


def saying(text: str, **more: Any) -> dict[str, Any]:
    """Return a call whose answer must be `text`."""
    body = {"structured_outputs": {"choice": [text]}}
    return {"model": "m", "input": "The weather?", "max_output_tokens": 200, "extra_body": body, **more}


def test_a_response_equals_the_chat_answer(client: openai.OpenAI) -> None:
    found = client.responses.create(
        model="m", input="The weather?", instructions="Be short.", max_output_tokens=8, temperature=0
    )
    chat = client.chat.completions.create(model="m", messages=MESSAGES, max_tokens=8, temperature=0)
    assert found.output_text == chat.choices[0].message.content
    assert found.usage is not None and chat.usage is not None
    assert found.usage.input_tokens == chat.usage.prompt_tokens
    assert found.status == "incomplete" and found.incomplete_details is not None
    assert found.incomplete_details.reason == "max_output_tokens"
    items = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": "The weather?"}]}]
    same = client.responses.create(
        model="m",
        input=items,
        instructions="Be short.",
        max_output_tokens=8,
        temperature=0,  # type: ignore[arg-type]
    )
    assert same.output_text == found.output_text


@pytest.mark.parametrize("text", ["It is warm.", "<think>Rome is far.</think>It is warm.", CALL])
def test_the_events_of_a_stream_add_up_to_the_response(client: openai.OpenAI, text: str) -> None:
    call = saying(text, tools=FLAT, temperature=0)
    whole = client.responses.create(**call)
    events = list(client.responses.create(**call, stream=True))
    assert [each.sequence_number for each in events] == list(range(len(events)))
    kinds = [each.type for each in events]
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    final = events[-1].response
    assert final.output_text == whole.output_text == ("" if text == CALL else "It is warm.")
    assert [item.type for item in final.output] == [item.type for item in whole.output]
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == whole.output_text
    assert kinds.count("response.output_item.added") == kinds.count("response.output_item.done") == len(whole.output)
    assert [tool.type for tool in whole.tools] == ["function"], "a hosted tool is left out, visibly"
    if text == CALL:
        (item,) = whole.output
        assert item.type == "function_call" and item.name == "weather" and item.arguments == '{"place": "Rome"}'


@pytest.mark.parametrize("text", [" Warm. \n END", "<think> \nFar.\n</think>\n It is warm. \n END", f"{CALL}\n END"])
def test_a_stop_string_keeps_white_space(client: openai.OpenAI, text: str) -> None:
    call = saying(text, tools=FLAT, temperature=0)
    call["extra_body"] = {**call["extra_body"], "stop": ["END"]}
    whole = client.responses.create(**call)
    events = list(client.responses.create(**call, stream=True))
    expected = "" if text.startswith(CALL) else text.rpartition("</think>")[2].removesuffix("END")
    assert whole.output_text.rstrip("\n ") == expected.rstrip("\n ") and (whole.output_text == expected or not expected)
    assert "".join(each.delta for each in events if each.type == "response.output_text.delta") == whole.output_text
    assert [item.type for item in events[-1].response.output] == [item.type for item in whole.output]


def test_the_stream_helper_and_earlier_calls_work(client: openai.OpenAI) -> None:
    with client.responses.stream(**saying("It is warm.", temperature=0)) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == "It is warm."
    history: list[Any] = [
        {"role": "user", "content": "The weather?"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"place": "Rome"}'},
        {"type": "function_call_output", "call_id": "c1", "output": "warm"},
    ]
    assert client.responses.create(**{**saying("It is warm."), "input": history}).output_text == "It is warm."


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"reasoning": {"effort": "low"}}, "reasoning"),
        ({"truncation": "auto"}, "truncation"),
        ({"input": [{"type": "image"}]}, "input.0"),
    ],
)
def test_fields_that_need_more_than_this_server_has_are_refused(
    client: openai.OpenAI, more: dict[str, Any], param: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": "m", "input": "x", **more})
    assert caught.value.param == param


def test_fields_without_effect_are_accepted(client: openai.OpenAI) -> None:
    found = client.responses.create(
        model="m", input="x", max_output_tokens=2, temperature=0, store=False, metadata={"a": "b"}, user="ann",
        include=["reasoning.encrypted_content"], prompt_cache_key="k", parallel_tool_calls=True,
    )  # fmt: skip
    assert found.object == "response"

"""Tool calls, reasoning, and structured output over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

import unspool
from tests.serving.conftest import serving

pytestmark = pytest.mark.model

TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n{% endfor %}{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% for call in message.tool_calls or [] %}{{ call.function.arguments.place }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"\s*(?:<\|im_end\|>|<\|endoftext\|>)", "content": "text"},
    },
}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "parameters": {
                "type": "object",
                "properties": {"place": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 3}},
                "required": ["place"],
                "additionalProperties": False,
            },
        },
    }
]
ASKED: list[Any] = [{"role": "user", "content": "The weather?"}]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Rome"}}\n</tool_call>'


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """A client of a model with a template for tools, and a response template."""
    lm = unspool.load()
    lm.tokenizer.chat_template = TEMPLATE
    lm.tokenizer.response_template = RESPONSE
    assert lm.tokenizer.eos_token == "<|endoftext|>"  # the template names it
    with (
        serving(lm, served_model_name=("m",)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as made,
    ):
        yield made


def saying(text: str, **more: Any) -> dict[str, Any]:
    """Return a call whose answer must be `text`."""
    body = {"structured_outputs": {"choice": [text]}}
    return {"model": "m", "messages": ASKED, "temperature": 0, "max_tokens": 200, "extra_body": body, **more}


def streamed(client: openai.OpenAI, call: dict[str, Any]) -> tuple[str, str, list[Any], str | None]:
    """Return (content, reasoning, calls, finish reason) of a stream."""
    content, reasoning, calls, reason = "", "", [], None
    for chunk in client.chat.completions.create(**call, stream=True):
        choice = chunk.choices[0]
        content += choice.delta.content or ""
        reasoning += (choice.delta.model_extra or {}).get("reasoning_content") or ""
        calls += choice.delta.tool_calls or []
        reason = choice.finish_reason or reason
    return content, reasoning, calls, reason


ANSWERS = {
    "call": (CALL, "", "", 1),
    "two calls": (CALL + "\n" + CALL.replace("Rome", "Oslo"), "", "", 2),
    "text": ("It is warm.", "It is warm.", "", 0),
    "reasoning": ("<think>Rome is far.</think>It is warm.", "It is warm.", "Rome is far.", 0),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_parts_of_an_answer_are_equal_streamed_and_whole(client: openai.OpenAI, name: str) -> None:
    text, content, reasoning, num_calls = ANSWERS[name]
    call = saying(text, tools=TOOLS)
    (choice,) = client.chat.completions.create(**call).choices
    found = streamed(client, call)
    calls = choice.message.tool_calls or []
    assert (choice.message.content or "") == content == found[0]
    assert ((choice.message.model_extra or {}).get("reasoning_content") or "") == reasoning == found[1]
    assert choice.finish_reason == found[3] == ("tool_calls" if num_calls else "stop")
    assert len(calls) == len(found[2]) == num_calls
    for index, (whole, part) in enumerate(zip(calls, found[2], strict=True)):
        assert part.index == index and part.type == whole.type == "function" and part.id
        assert whole.type == "function" and whole.function.arguments == part.function.arguments
        assert whole.function.name == part.function.name == "weather"
        assert json.loads(whole.function.arguments)["place"] in ("Rome", "Oslo")


STOPPED = {
    "text": ("  Two.\n\n  Three. \nEND of it", "  Two.\n\n  Three. \n", "", 0),
    "space before the stop": (" One \t END", " One \t ", "", 0),
    "no stop in it": ("  One.\n\n Two", "  One.\n\n Two", "", 0),
    "reasoning": ("<think>\n Far. \n</think>\n\nIt is warm. END", "\n\nIt is warm. ", "\n Far. \n", 0),
    "stop in the reasoning": ("<think>\n Far. END</think>Warm.", "", "\n Far. ", 0),
    "call": (f"Yes: \n{CALL} END", "Yes: ", "", 1),
    "stop in the call": ('So. <tool_call>\n{"name": "END"}', 'So. <tool_call>\n{"name": "', "", 0),
}


@pytest.mark.parametrize("name", STOPPED)
@pytest.mark.parametrize("more", [{}, {"extra_body": {"num_beams": 2}}], ids=["greedy", "beams"])
def test_a_stop_string_changes_nothing_before_it(client: openai.OpenAI, name: str, more: dict[str, Any]) -> None:
    """White space at the ends of the parts was lost if a stop string was given, and the stream came at its end only."""
    text, content, reasoning, num_calls = STOPPED[name]
    call = saying(text, tools=TOOLS, stop=["END", "\n\nUser:"])
    call["extra_body"] = {**call["extra_body"], **more.get("extra_body", {})}
    if more:
        del call["temperature"]
    (choice,) = client.chat.completions.create(**call).choices
    assert (choice.message.content or "") == content
    assert ((choice.message.model_extra or {}).get("reasoning_content") or "") == reasoning
    assert len(choice.message.tool_calls or []) == num_calls
    found = streamed(client, call)
    assert (found[0], found[1], len(found[2]), found[3]) == (content, reasoning, num_calls, choice.finish_reason)


def test_text_before_a_stop_string_streams_at_once(client: openai.OpenAI) -> None:
    call = saying("One two three four five six END", stop=["END"])
    pieces = [chunk.choices[0].delta.content for chunk in client.chat.completions.create(**call, stream=True)]
    assert sum(bool(piece) for piece in pieces) > 3


@pytest.mark.parametrize("before", ["", "Well. ", "<think>Far.</think>", f"{CALL}\n"])
def test_the_parts_before_a_malformed_call_stay(client: openai.OpenAI, before: str) -> None:
    """The whole text came again as content after its reasoning and its other calls."""
    wrong = '<tool_call>\n{"name": weather}\n</tool_call>'
    call = saying(before + wrong, tools=TOOLS)
    (choice,) = client.chat.completions.create(**call).choices
    assert (choice.message.content or "").lstrip() == ("Well. " if before == "Well. " else "") + wrong
    assert len(choice.message.tool_calls or []) == before.count("<tool_call>")
    found = streamed(client, call)
    assert found[0] == choice.message.content and found[3] == choice.finish_reason
    assert found[1] == ("Far." if "think" in before else "")


def test_a_malformed_call_is_content(client: openai.OpenAI) -> None:
    text = '<tool_call>\n{"name": weather}\n</tool_call>'
    call = saying(text, tools=TOOLS)
    (choice,) = client.chat.completions.create(**call).choices
    assert choice.message.content == text and not choice.message.tool_calls and choice.finish_reason == "stop"
    assert streamed(client, call)[0] == text


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
def test_a_call_can_be_required(client: openai.OpenAI, choice: Any) -> None:
    call: dict[str, Any] = {"model": "m", "messages": ASKED, "tools": TOOLS, "tool_choice": choice, "max_tokens": 200}
    for more in ({"seed": 4}, {"temperature": 0}, {"extra_body": {"num_beams": 2}}):
        (found,) = client.chat.completions.create(**call, **more).choices
        assert found.message.tool_calls is not None and found.finish_reason == "tool_calls"
        (made,) = found.message.tool_calls
        assert made.type == "function" and made.function.name == "weather"
        arguments = json.loads(made.function.arguments)
        assert arguments["place"] in ("Rome", "Oslo") and arguments.get("days", 0) <= 3


def test_a_required_call_and_a_constraint_are_refused_together(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="cannot be combined"):
        client.chat.completions.create(**saying("x", tools=TOOLS, tool_choice="required"))
    with pytest.raises(openai.BadRequestError, match="must be none, auto, required, or name one of weather"):
        other: Any = {"type": "function", "function": {"name": "time"}}
        client.chat.completions.create(model="m", messages=ASKED, tools=TOOLS, tool_choice=other)


def test_the_result_of_a_call_can_be_given_back(client: openai.OpenAI) -> None:
    (choice,) = client.chat.completions.create(**saying(CALL, tools=TOOLS)).choices
    made = choice.message.tool_calls
    assert made is not None
    messages = [
        *ASKED,
        choice.message.to_dict(),
        {"role": "tool", "tool_call_id": made[0].id, "content": "warm"},
    ]
    call = {**saying("It is warm."), "messages": messages}
    assert client.chat.completions.create(**call).choices[0].message.content == "It is warm."


class City(pydantic.BaseModel):
    """A city."""

    name: str = pydantic.Field(max_length=12)
    size: int = pydantic.Field(ge=0, le=99)


@pytest.mark.parametrize("more", [{"seed": 2}, {"extra_body": {"num_beams": 2}}])
def test_openais_parse_helper_gives_objects(client: openai.OpenAI, more: dict[str, Any]) -> None:
    found = client.chat.completions.parse(model="m", messages=ASKED, response_format=City, max_tokens=120, **more)
    assert isinstance(found.choices[0].message.parsed, City)


def test_constraints_of_other_servers_are_read(client: openai.OpenAI) -> None:
    for body in (
        {"structured_outputs": {"choice": ["yes", "no"]}},
        {"guided_choice": ["yes", "no"]},
        {"guided_regex": "yes|no"},
        {"structured_outputs": {"regex": "yes|no"}},
        {"guided_grammar": 'start: "yes" | "no"', "structured_outputs": {"grammar": 'start: "yes" | "no"'}},
    ):
        answer = client.completions.create(model="m", prompt="Is it?", max_tokens=9, seed=1, extra_body=body)
        assert answer.choices[0].text in ("yes", "no"), body
    answer = client.completions.create(
        model="m", prompt="x", max_tokens=60, seed=3, extra_body={"response_format": {"type": "json_object"}}
    )
    assert answer.choices[0].text.startswith("{")
    with pytest.raises(openai.BadRequestError):
        client.completions.create(model="m", prompt="x", extra_body={"guided_regex": "a", "guided_choice": ["b"]})
    schema = {"type": "array", "uniqueItems": True}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        client.completions.create(model="m", prompt="x", extra_body={"guided_json": schema})

"""Well-known programs: bodies that they send by default, LangChain itself, and the JavaScript of docs/serving.md."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pydantic
import pytest

import unspool
from tests.docs.blocks import find_blocks
from tests.serving.conftest import serving
from tests.serving.test_tools import ASKED, CALL, TOOLS, client

__all__ = ["client"]

httpx = pytest.importorskip("httpx2", reason="comes with openai")

pytestmark = pytest.mark.model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "serving.md"
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
PROMPT = "Once upon a time"
LARK = '%llguidance {}\nstart: "yes" | "no"\n'
NAMED: Any = {"type": "function", "function": {"name": "weather"}}
SCHEMA = {"type": "object", "properties": {"size": {"type": "integer", "maximum": 9}}, "required": ["size"],
          "additionalProperties": False}  # fmt: skip


# Program --> (route, body, what its answer must be). A text stands for the greedy text of Python.
BODIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "LangChain's chat model": (
        CHAT, {"model": "m", "messages": ASKED, "max_completion_tokens": 6, "stream": False, "temperature": 0}, "chat",
    ),
    "LangChain's chat model, strict schema": (
        CHAT,
        {"model": "m", "messages": ASKED, "stream": False, "max_completion_tokens": 60, "parallel_tool_calls": False,
         "response_format": {"type": "json_schema", "json_schema": {"name": "city", "strict": True, "schema": SCHEMA}}},
        "json",
    ),
    "LangChain's text model": (
        COMPLETIONS,
        {"model": "m", "prompt": [PROMPT], "temperature": 0.0, "top_p": 1, "frequency_penalty": 0,
         "presence_penalty": 0, "n": 1, "seed": None, "logprobs": None, "max_tokens": 6},
        "text",
    ),
    "LlamaIndex": (
        COMPLETIONS, {"model": "m", "prompt": PROMPT, "stream": False, "temperature": 0.0, "max_tokens": 6}, "text",
    ),
    "LlamaIndex's chat": (
        CHAT, {"model": "m", "messages": ASKED, "stream": False, "temperature": 0.0, "max_tokens": 6}, "chat",
    ),
    "Open WebUI": (
        CHAT, {"stream": True, "model": "m", "messages": ASKED, "max_tokens": 6, "temperature": 0,
               "user": {"name": "Ann", "id": "1", "email": "a@example", "role": "user"}}, "chat",
    ),
    "Open WebUI's continue": (
        CHAT,
        {"stream": False, "model": "m", "temperature": 0, "max_tokens": 6, "continue_final_message": True,
         "add_generation_prompt": False, "messages": [*ASKED, {"role": "assistant", "content": "It is"}]},
        "any",
    ),
    "promptfoo": (
        COMPLETIONS,
        {"model": "m", "prompt": PROMPT, "max_tokens": 6, "temperature": 0, "top_p": 1, "presence_penalty": 0,
         "frequency_penalty": 0, "best_of": 1, "stop": ["<|im_end|>", "<|endoftext|>"]},
        "text",
    ),
    "continue": (
        CHAT,
        {"messages": ASKED, "model": "m", "max_tokens": 6, "temperature": 0, "stream": True,
         "stop": ["<|im_end|>", "<|im_start|>", "</s>", "a1", "b2", "c3", "d4", "e5"]},
        "chat",
    ),
    "continue's autocomplete": (
        COMPLETIONS,
        {"prompt": PROMPT, "model": "m", "max_tokens": 6, "temperature": 0, "stream": True,
         "stop": ["<fim_prefix>", "<fim_suffix>", "<fim_middle>", "<file_sep>", "<|endoftext|>", "/src/", "#- coding"]},
        "text",
    ),
    "guidance": (
        CHAT,
        {"model": "m", "messages": ASKED, "stream": True, "logprobs": True, "top_logprobs": None, "max_tokens": 20,
         "guided_decoding_backend": "guidance", "guided_grammar": LARK, "structured_outputs": {"grammar": LARK}},
        "yes or no",
    ),
    "outlines": (
        CHAT, {"model": "m", "messages": ASKED, "structured_outputs": {"regex": "yes|no"}}, "yes or no",
    ),
    "aider": (CHAT, {"model": "m", "messages": ASKED, "stream": True, "temperature": 0, "max_tokens": 6}, "chat"),
    "aider's functions": (
        CHAT,
        {"model": "m", "messages": ASKED, "stream": False, "temperature": 0, "tools": TOOLS, "tool_choice": NAMED,
         "max_tokens": 200},
        "call",
    ),
    "lm-evaluation-harness' chat": (
        CHAT,
        {"model": "m", "messages": [{**ASKED[0], "type": "text"}], "max_tokens": 6, "temperature": 0, "seed": 1234,
         "stop": ["zz1", "zz2", "zz3", "zz4"]},
        "chat",
    ),
    "LangChain's chat model, responses": (
        RESPONSES,
        {"model": "m", "input": [{"role": "user", "content": ASKED[0]["content"], "type": "message"}], "stream": True,
         "temperature": 0, "max_output_tokens": 6, "include": ["reasoning.encrypted_content"],
         "text": {"format": {"type": "text"}}, "tools": [{"type": "function", **TOOLS[0]["function"]}]},
        "response",
    ),
    "agents": (
        CHAT,
        {"model": "m", "temperature": 0, "max_tokens": 6,
         "messages": [{**ASKED[0], "agent": "main", "messageId": "7"}]},
        "chat",
    ),
    "Codex": (
        RESPONSES,
        {"model": "m", "instructions": "", "input": [{"type": "message", "role": "user", "content": [
            {"type": "input_text", "text": ASKED[0]["content"]}]}],
         "tools": [{"type": "function", "strict": False, **TOOLS[0]["function"]}, {"type": "web_search"},
                   {"type": "namespace"}, {"type": "image_generation"}],
         "tool_choice": "auto", "parallel_tool_calls": True, "store": False, "stream": True, "reasoning": None,
         "include": ["reasoning.encrypted_content"], "prompt_cache_key": "k", "client_metadata": {"a": "b"},
         "max_output_tokens": 6, "temperature": 0},
        "response",
    ),
}  # fmt: skip


def events_of(text: str) -> list[dict[str, Any]]:
    """Return the JSON values of a stream."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def written_by(route: str, answer: Any) -> str:
    """Return the text of an answer, whole or streamed."""
    if not answer.headers["content-type"].startswith("text/event-stream"):
        choice = answer.json()["choices"][0]
        return str(choice["text"] if route == COMPLETIONS else choice["message"]["content"])
    choices = [event["choices"][0] for event in events_of(answer.text)]
    if route == COMPLETIONS:
        return "".join(choice["text"] for choice in choices)
    return "".join(choice["delta"].get("content") or "" for choice in choices)


@pytest.mark.parametrize("name", BODIES)
def test_the_body_of_a_well_known_program_is_answered(client: openai.OpenAI, name: str) -> None:
    route, body, kind = BODIES[name]
    address = str(client.base_url).removesuffix("/v1/")
    answer = httpx.post(address + route, json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    if kind == "text":
        expected = client.completions.create(model="m", prompt=PROMPT, max_tokens=6, temperature=0).choices[0].text
        assert written_by(route, answer) == expected == unspool.load().generate(PROMPT, max_new_tokens=6).text
    elif kind == "chat":
        plain = client.chat.completions.create(model="m", messages=ASKED, max_tokens=6, temperature=0)
        assert written_by(route, answer) == plain.choices[0].message.content
    elif kind == "json":
        assert json.loads(written_by(route, answer))["size"] <= 9
    elif kind == "yes or no":
        assert written_by(route, answer) in ("yes", "no")
    elif kind == "call":
        (call,) = answer.json()["choices"][0]["message"]["tool_calls"]
        assert call["function"]["name"] == "weather" and json.loads(call["function"]["arguments"])["place"]
    elif kind == "response":
        last = events_of(answer.text)[-1]
        assert last["type"] in ("response.completed", "response.incomplete")
        assert [tool["type"] for tool in last["response"]["tools"]] == ["function"]
    else:
        assert written_by(route, answer)


class City(pydantic.BaseModel):
    """A city."""

    name: str = pydantic.Field(max_length=12)
    size: int = pydantic.Field(ge=0, le=99)


@pytest.fixture(scope="module")
def chain(client: openai.OpenAI) -> Any:
    """LangChain's chat model of the server with tools."""
    langchain = pytest.importorskip("langchain_openai", reason="langchain-openai is not installed")
    return langchain.ChatOpenAI(
        base_url=str(client.base_url), api_key="none", model="m", temperature=0, max_tokens=120, max_retries=0
    )


def test_langchain_answers_and_streams(chain: Any, client: openai.OpenAI) -> None:
    short = chain.bind(max_tokens=6)
    plain = client.chat.completions.create(model="m", messages=ASKED, max_tokens=6, temperature=0)
    assert short.invoke("The weather?").content == plain.choices[0].message.content
    assert "".join(chunk.content for chunk in short.stream("The weather?")) == plain.choices[0].message.content


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gets_objects(chain: Any, method: str) -> None:
    # A schema that is not strict allows further properties, and the small model writes them without end.
    assert isinstance(chain.with_structured_output(City, method=method, strict=True).invoke("The weather?"), City)


def test_langchain_calls_tools(chain: Any) -> None:
    bound = chain.bind_tools(TOOLS)
    (call,) = bound.invoke("The weather?", extra_body={"structured_outputs": {"choice": [CALL]}}).tool_calls
    assert call["name"] == "weather" and call["args"] == {"place": "Rome"}


@pytest.fixture(scope="module")
def plain_server() -> Iterator[str]:
    """A server as the page starts it."""
    with serving(unspool.load(), served_model_name=("tale",)) as (address, _):
        yield address


def scripts() -> list[str]:
    """Return the JavaScript blocks of the page."""
    return [block.text for block in find_blocks(PAGE.read_text()) if block.language == "js"]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
@pytest.mark.parametrize("index", range(len(scripts())))
def test_the_javascript_of_the_page_runs(plain_server: str, index: int) -> None:
    script = scripts()[index].replace("http://127.0.0.1:8000", plain_server)
    assert plain_server in script
    done = subprocess.run(
        ["node", "--input-type=module", "-"], input=script, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    expected = unspool.load().generate(PROMPT, max_new_tokens=12, num_beams=4).text
    assert done.stdout.strip() == expected.strip()

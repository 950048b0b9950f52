"""POST /v1/responses: OpenAI's newer API, translated to a chat completion. Nothing is stored between calls."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final, Literal

from unspool.results import Chunk, Completion, Generation
from unspool.serving.answers.message_parts import MessageParts
from unspool.serving.errors import ApiError, api_error, refused
from unspool.serving.execution.service import OpenRequest, Service, new_id
from unspool.serving.http.sse import event
from unspool.serving.requests.bodies import read_body
from unspool.serving.routes.chat import ChatCall

_INERT: Final = frozenset(
    {"include", "metadata", "store", "user", "service_tier", "safety_identifier", "client_metadata"}
    | {"prompt_cache_key", "prompt_cache_retention", "prompt_cache_options", "stream_options"}
)

_UNANSWERED: Final = {
    "n": 1,
    "num_return_sequences": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "prompt_logprobs": None,
    "return_token_ids": False,
    "tentative": False,
}
"""Fields of the chat route without a place in a response --> neutral value."""

_STATEFUL: Final = frozenset({"previous_response_id", "conversation", "background", "prompt"})
"""Fields that need stored state, which this server does not keep."""

_HOSTED: Final = "function"
"""The one type of tools that this server can render; others are left out of the echoed list."""


class ResponseCall:
    """One call of the route.

    Args:
        service: the service.
        data: the JSON object of the body.
        salt: as in `Call`.
        unknown: as in `read_body`.

    Raises:
        ApiError: if a field cannot be served.
    """

    def __init__(
        self, service: Service, data: Mapping[str, Any], *, salt: str, unknown: Literal["error", "warn"]
    ) -> None:
        self.id = new_id("resp")
        given = {name: value for name, value in data.items() if value is not None and name not in _INERT}
        _check_types(given)
        for name in sorted(_STATEFUL & given.keys()):
            if given[name] is not False:
                raise refused(name, "needs stored responses, and this server keeps none", code="unsupported_parameter")
        for name, neutral in _UNANSWERED.items():
            if given.get(name, neutral) != neutral:
                raise refused(
                    name, "does not fit into a response; use /v1/chat/completions", code="unsupported_parameter"
                )
        self._given = {name: value for name, value in given.items() if name not in _STATEFUL}
        self._tools = [tool for tool in given.get("tools", ()) if tool.get("type") == _HOSTED]
        body = read_body("chat", _chat_body(self._given, self._tools), unknown=unknown)
        self.ignored = body.ignored
        self._chat = ChatCall(service, body, salt=salt)
        self._number = 0

    @property
    def request(self) -> OpenRequest:
        """The open request."""
        return self._chat.request

    @property
    def streams(self) -> bool:
        """True if the answer is a stream."""
        return self._chat.streams

    async def start(self) -> None:
        """Admit, plan and submit. Raises ApiError as `OpenRequest.start`."""
        await self._chat.start()

    # --- whole --------------------------------------------------------------------------------------------------

    async def answer(self) -> dict[str, Any]:
        """Return the whole response."""
        (generation,) = await self.request.finish()
        completion = generation.completions[0]
        items = _Items()
        parts = self._chat.new_parts()
        chunk = Chunk(text=completion.text, token_ids=completion.token_ids, logprobs=completion.logprobs)
        for delta in (*parts.add(chunk), *parts.end(completion)):
            items.add(delta)
        return self._ended(generation, completion, items, parts)

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        given = self._given
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.request.created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": given.get("instructions"),
            "max_output_tokens": given.get("max_output_tokens"),
            "metadata": {},
            "model": given.get("model"),
            "output": [],
            "parallel_tool_calls": given.get("parallel_tool_calls", True),
            "temperature": given.get("temperature", 1.0),
            "text": given.get("text", {"format": {"type": "text"}}),
            "tool_choice": given.get("tool_choice", "auto"),
            "tools": self._tools,
            "top_p": given.get("top_p", 1.0),
            "usage": None,
            **more,
        }

    def _ended(
        self, generation: Generation, completion: Completion, items: _Items, parts: MessageParts
    ) -> dict[str, Any]:
        counts = generation.usage
        cut = completion.finish_reason == "length"
        usage = {
            "input_tokens": counts.prompt_tokens,
            "input_tokens_details": {"cached_tokens": counts.cached_tokens},
            "output_tokens": counts.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": parts.reasoning_tokens},
            "total_tokens": counts.total_tokens,
        }
        details = {"reason": "max_output_tokens"} if cut else None
        status = "incomplete" if cut else "completed"
        return self._response(status, output=items.output(status), incomplete_details=details, usage=usage)

    # --- streamed -----------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the streamed response. The last one is completed, incomplete or failed."""
        yield self._say("response.created", response=self._response("in_progress"))
        yield self._say("response.in_progress", response=self._response("in_progress"))
        items, parts = _Items(), self._chat.new_parts()
        try:
            async for chunk in self.request.chunks():
                for each in self._deltas(items, parts.add(chunk)):
                    yield each
        except ApiError as error:
            told = api_error(error).body()["error"]
            failure = {"code": told["code"] or told["type"], "message": told["message"]}
            yield self._say("response.failed", response=self._response("failed", error=failure))
            return
        (generation,) = self.request.generations
        completion = generation.completions[0]
        for each in self._deltas(items, parts.end(completion)):
            yield each
        response = self._ended(generation, completion, items, parts)
        for index, item in enumerate(response["output"]):
            for each in self._item_ends(index, item):
                yield each
        yield self._say(f"response.{response['status']}", response=response)

    def _deltas(self, items: _Items, deltas: Sequence[Mapping[str, Any]]) -> list[bytes]:
        said = []
        for delta in deltas:
            index, is_new = items.add(delta)
            item = items.items[index]
            if is_new:
                begun = {**item, "content": []} if "content" in item else item
                said.append(self._say("response.output_item.added", output_index=index, item=begun))
            place = {"item_id": item["id"], "output_index": index}
            if item["type"] == "message":
                if is_new:
                    empty = {"type": "output_text", "text": "", "annotations": []}
                    said.append(self._say("response.content_part.added", **place, content_index=0, part=empty))
                text = {"content_index": 0, "delta": delta["content"], "logprobs": []}
                said.append(self._say("response.output_text.delta", **place, **text))
            elif item["type"] == "reasoning":
                text = {"content_index": 0, "delta": delta["reasoning_content"]}
                said.append(self._say("response.reasoning_text.delta", **place, **text))
            else:
                said.append(self._say("response.function_call_arguments.delta", **place, delta=item["arguments"]))
        return said

    def _item_ends(self, index: int, item: Mapping[str, Any]) -> list[bytes]:
        place = {"item_id": item["id"], "output_index": index}
        said = []
        if item["type"] == "message":
            part = item["content"][0]
            text = {"content_index": 0, "text": part["text"], "logprobs": []}
            said.append(self._say("response.output_text.done", **place, **text))
            said.append(self._say("response.content_part.done", **place, content_index=0, part=part))
        elif item["type"] == "reasoning":
            text = {"content_index": 0, "text": item["content"][0]["text"]}
            said.append(self._say("response.reasoning_text.done", **place, **text))
        else:
            call = {"name": item["name"], "arguments": item["arguments"]}
            said.append(self._say("response.function_call_arguments.done", **place, **call))
        said.append(self._say("response.output_item.done", output_index=index, item=item))
        return said

    def _say(self, kind: str, **more: Any) -> bytes:
        value = {"type": kind, "sequence_number": self._number, **more}
        self._number += 1
        return event(value, kind)


class _Items:
    """The output items of a response: neighboring text is one item, and each tool call is one."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def add(self, delta: Mapping[str, Any]) -> tuple[int, bool]:
        """Add a delta. Returns the index of its item, and True if the item is new."""
        if calls := delta.get("tool_calls"):
            call = calls[0]
            function = {"name": call["function"]["name"], "arguments": call["function"]["arguments"]}
            self.items.append({"id": _item_id("fc"), "type": "function_call", "call_id": call["id"], **function})
            return len(self.items) - 1, True
        kind = "message" if "content" in delta else "reasoning"
        text = delta["content"] if kind == "message" else delta["reasoning_content"]
        is_new = not self.items or self.items[-1]["type"] != kind
        if is_new and kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self.items.append({"id": _item_id("msg"), "type": kind, "role": "assistant", "content": [part]})
        elif is_new:
            part = {"type": "reasoning_text", "text": ""}
            self.items.append({"id": _item_id("rs"), "type": kind, "summary": [], "content": [part]})
        self.items[-1]["content"][0]["text"] += text
        return len(self.items) - 1, is_new

    def output(self, status: str) -> list[dict[str, Any]]:
        """Return the items with their status; only the last one can be incomplete."""
        last = len(self.items) - 1
        return [{**item, "status": status if index == last else "completed"} for index, item in enumerate(self.items)]


def _check_types(given: Mapping[str, Any]) -> None:
    """Check the fields that the translation reads; the chat route checks the rest.

    Raises:
        ApiError: 400 if a field has the wrong type.
    """
    tools = given.get("tools", [])
    format = given["text"].get("format") if isinstance(given.get("text"), Mapping) else None
    for name, value, kind, words in (
        ("instructions", given.get("instructions", ""), str, "a text"),
        ("text", given.get("text", {}), Mapping, "an object"),
        ("text.format", {} if format is None else format, Mapping, "an object"),
        ("tools", tools, list, "a list"),
        *(
            (f"tools.{at}", tool, Mapping, "an object")
            for at, tool in enumerate(tools if isinstance(tools, list) else ())
        ),
    ):
        if not isinstance(value, kind):
            raise ApiError(400, f"`{name}` must be {words}", param=name, code="invalid_type")


def _item_id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def _chat_body(given: Mapping[str, Any], tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the body of the equal chat completion."""
    body = {name: value for name, value in given.items() if name not in _TRANSLATED}
    body["messages"] = _messages(given)
    if "max_output_tokens" in given:
        body["max_completion_tokens"] = given["max_output_tokens"]
    if (wanted := given.get("text", {}).get("format")) is not None:
        inner = {key: value for key, value in wanted.items() if key != "type"}
        is_schema = wanted.get("type") == "json_schema"
        body["response_format"] = {"type": "json_schema", "json_schema": inner} if is_schema else wanted
    if tools:
        names = ("name", "description", "parameters", "strict")
        body["tools"] = [
            {"type": _HOSTED, "function": {name: tool[name] for name in names if name in tool}} for tool in tools
        ]
    if (choice := given.get("tool_choice")) is not None and tools:
        named = isinstance(choice, Mapping) and "name" in choice
        body["tool_choice"] = {"type": _HOSTED, "function": {"name": choice["name"]}} if named else choice
    if given.get("reasoning"):
        raise refused("reasoning", "is not a field of this server; give `chat_template_kwargs` if the template has one")
    if given.get("truncation", "disabled") != "disabled":
        raise refused("truncation", "can only be disabled on this server", code="unsupported_value")
    return body


_TRANSLATED: Final = frozenset(
    {"input", "instructions", "max_output_tokens", "text", "tools", "tool_choice", "reasoning", "truncation"}
)


def _messages(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the input as messages."""
    source = given.get("input")
    if source is None:
        raise refused("input", "is required", code="missing_required_parameter")
    messages: list[dict[str, Any]] = []
    if given.get("instructions"):
        messages.append({"role": "system", "content": given["instructions"]})
    if isinstance(source, str):
        return [*messages, {"role": "user", "content": source}]
    if not isinstance(source, list):
        raise refused("input", "must be a text or a list of items")
    for index, item in enumerate(source):
        _add_item(messages, item, f"input.{index}")
    return messages


def _add_item(messages: list[dict[str, Any]], item: Any, path: str) -> None:
    kind = item.get("type", "message") if isinstance(item, Mapping) else None
    if kind == "message":
        messages.append({"role": item.get("role"), "content": item.get("content")})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments", "{}")}
        call = {"id": item.get("call_id"), "type": _HOSTED, "function": function}
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        else:
            messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
    elif kind == "function_call_output":
        output = item.get("output")
        text = output if isinstance(output, str) else json.dumps(output)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    elif kind != "reasoning":
        raise ApiError(400, f"`{path}` has the type {kind!r}, which this server cannot read", param=path)

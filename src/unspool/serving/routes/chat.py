"""POST /v1/chat/completions: answers conversations."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from unspool.config import GenerationConfig
from unspool.conversations.completion import encode_conversations
from unspool.errors import PromptError
from unspool.planning import PlannedRequest
from unspool.results import Chunk, Completion, Generation
from unspool.serving.answers.answers import finish_reason, stop_reason, usage_of, vendor
from unspool.serving.answers.logprobs import chat_logprobs, scored
from unspool.serving.answers.message_parts import MessageParts, ParsedParts, PlainParts, whole
from unspool.serving.answers.streams import StreamUsage
from unspool.serving.errors import refused
from unspool.serving.execution.service import Service
from unspool.serving.http.sse import event
from unspool.serving.requests.bodies import Body
from unspool.serving.requests.decoding import CONSTRAINTS
from unspool.serving.requests.messages import read_messages
from unspool.serving.requests.tools import Parsed, call_grammar, call_object, check_tools
from unspool.serving.routes.calls import Call


class ChatCall(Call):
    """One call of the route. Arguments and errors as in `Call`."""

    id_prefix = "chatcmpl"

    def __init__(self, service: Service, body: Body, *, salt: str) -> None:
        super().__init__(service, body, count=1, salt=salt)
        self._messages = read_messages(body.get("messages", []))
        self._tools = _tools(body, service)
        if (wanted := _forced_tools(body, self._tools)) is not None:
            if constraint := CONSTRAINTS & self._options.keys():
                field = self._decoding.fields[min(constraint)]
                raise refused("tool_choice", f"and `{field}` cannot be combined: both constrain the answer")
            self._options["grammar"] = call_grammar(wanted, service.lm.tokenizer)
        self._continues = _continues(body)

    def _plan(self) -> Sequence[PlannedRequest]:
        lm, body, options = self._service.lm, self._body, dict(self._options)
        conversations, config = encode_conversations(
            lm,
            [self._messages],
            tools=self._tools,
            continue_final_message=self._continues,
            chat_template=body.get("chat_template"),
            chat_template_kwargs=body.get("chat_template_kwargs"),
            options=options,
        )
        if ends := body.get("stop_token_ids"):
            known = config.eos_token_id if isinstance(config, GenerationConfig) else None
            options["eos_token_id"] = [*(known or self._service.end_tokens), *ends]
        ids = conversations[0].prompt_ids
        keep = body.get("truncate_prompt_tokens")
        if keep is not None and conversations[0].source is not None:
            raise PromptError("`truncate_prompt_tokens` cannot shorten a conversation with images or audio")
        prompt: Any = conversations[0].prompt if keep is None else ids[-keep:]
        ids = ids if keep is None else ids[-keep:]
        if not options.keys() & {"max_new_tokens", "max_length"}:
            room = self._service.room_after(len(ids))
            if room is not None:
                options["max_new_tokens"] = room
        return lm._plan_all([prompt], config=config, tentative=bool(body.get("tentative")), trace=False, **options)

    # --- whole --------------------------------------------------------------------------------------------------

    async def answer(self) -> dict[str, Any]:
        """Return the whole answer."""
        (generation,) = await self.request.finish()
        parsed = [whole(self.new_parts(), completion) for completion in generation.completions]
        choices = [
            self._choice(generation, completion, parts)
            for completion, parts in zip(generation.completions, parsed, strict=True)
        ]
        counts = usage_of([generation], reasoning_tokens=sum(each.reasoning_tokens for each in parsed))
        of_prompt = self._of_prompt_tokens(0, generation)
        return {**self._head("chat.completion"), "choices": choices, "usage": counts, **of_prompt}

    def _choice(self, generation: Generation, completion: Completion, parsed: Parsed) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": parsed.content, "refusal": None}
        if parsed.reasoning:
            message["reasoning_content"] = parsed.reasoning
        if parsed.calls:
            message["tool_calls"] = [call_object(*call) for call in parsed.calls]
            message["content"] = parsed.content or None
        choice: dict[str, Any] = {
            "index": completion.index,
            "message": message,
            "logprobs": None,
            "finish_reason": "tool_calls" if parsed.calls else finish_reason(completion.finish_reason),
            "stop_reason": stop_reason(completion, self._options.get("stop_strings", ())),
            "unspool": vendor(generation, completion),
        }
        if self._decoding.num_top is not None:
            rows = scored(completion.token_ids, completion.logprobs, completion.top_logprobs)
            choice["logprobs"] = self._logprobs(rows)
        if self._body.get("return_token_ids"):
            choice["prompt_token_ids"] = list(generation.prompt_token_ids)
            choice["token_ids"] = list(completion.token_ids)
        return choice

    def _logprobs(self, rows: Any) -> dict[str, Any]:
        as_ids = bool(self._body.get("return_tokens_as_token_ids"))
        return chat_logprobs(rows, self._service.texts, num_top=self._decoding.num_top or 0, as_ids=as_ids)

    # --- streamed -----------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the events of the streamed answer, without [DONE]."""
        head = self._head("chat.completion.chunk")
        counts = StreamUsage(self._body, self.request.jobs)
        parts: dict[int, MessageParts] = {}

        def say(index: int, delta: dict[str, Any], **more: Any) -> bytes:
            choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None, **more}
            return event(counts.beside({**head, "choices": [choice]}))

        async for chunk in self.request.chunks():
            counts.add(chunk)
            if chunk.index not in parts:
                parts[chunk.index] = self.new_parts()
                yield say(chunk.index, {"role": "assistant", "content": ""})
            deltas = parts[chunk.index].add(chunk)
            more = self._extra(chunk)
            for at, delta in enumerate(deltas or ([{}] if more else [])):
                yield say(chunk.index, delta, **(more if at == 0 else {}))
        (generation,) = self.request.generations
        for completion in generation.completions:
            if completion.index not in parts:  # an output without any token
                parts[completion.index] = self.new_parts()
                yield say(completion.index, {"role": "assistant", "content": ""})
            for delta in parts[completion.index].end(completion):
                yield say(completion.index, delta)
            reason = finish_reason(completion.finish_reason)
            yield say(completion.index, {}, finish_reason="tool_calls" if parts[completion.index].has_calls else reason)
        if counts.wanted:
            reasoning = sum(each.reasoning_tokens for each in parts.values())
            yield event({**head, "choices": [], "usage": usage_of([generation], reasoning_tokens=reasoning)})

    def new_parts(self) -> MessageParts:
        """Return a reader of the parts of one answer, after the start."""
        detokenizer = self._service.lm._detokenizer
        if detokenizer is None or getattr(detokenizer.tokenizer, "response_template", None) is None:
            return PlainParts()
        ids = self.request.jobs[0].request.prompt
        return ParsedParts(detokenizer, ids, self._tools, stops=self._options.get("stop_strings", ()))

    def _extra(self, chunk: Chunk) -> dict[str, Any]:
        """Return the fields of a chunk's choice besides its delta."""
        more: dict[str, Any] = {}
        if self._decoding.num_top is not None and chunk.token_ids:
            more["logprobs"] = self._logprobs(scored(chunk.token_ids, chunk.logprobs, chunk.top_logprobs))
        if self._body.get("return_token_ids") and chunk.token_ids:
            more["token_ids"] = list(chunk.token_ids)
        if chunk.tentative is not None:
            more["unspool"] = {"tentative": chunk.tentative}
        return more


def _tools(body: Body, service: Service) -> list[dict[str, Any]] | None:
    """Return the tools to render; None for none."""
    tools, choice = body.get("tools"), body.get("tool_choice")
    if choice is not None and tools is None and choice != "none":
        raise refused("tool_choice", "needs `tools`")
    check_tools(tools, service.lm.tokenizer, body.get("chat_template"))
    return None if tools is None or choice == "none" else list(tools)


def _forced_tools(body: Body, tools: list[dict[str, Any]] | None) -> list[dict[str, Any]] | None:
    """Return the tools of which one must be called; None if the model decides."""
    choice = body.get("tool_choice")
    if tools is None or choice in (None, "auto", "none"):
        return None
    if choice == "required":
        return tools
    function = choice.get("function") if isinstance(choice, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    named = [tool for tool in tools if tool["function"]["name"] == name]
    if not named:
        known = ", ".join(tool["function"]["name"] for tool in tools)
        raise refused("tool_choice", f"must be none, auto, required, or name one of {known}, got {choice!r}")
    return named


def _continues(body: Body) -> bool:
    continues, begins = bool(body.get("continue_final_message")), body.get("add_generation_prompt")
    if begins is not None and begins == continues:
        told = (
            "and `continue_final_message` cannot both be true" if continues else "false needs `continue_final_message`"
        )
        raise refused("add_generation_prompt", told)
    return continues

"""The parts of an answer as they stream: content, reasoning and tool calls.

With a response template, transformers' parser tells the parts apart; else all text is content.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol

from unspool.results import Chunk, Completion
from unspool.serving.tools import Parsed, call_object, name_and_arguments, parse
from unspool.text.detokenize import Detokenizer

_REASONING: Final = frozenset({"reasoning_content", "reasoning", "thinking"})


class MessageParts(Protocol):
    """Turns the chunks of one answer into deltas."""

    def add(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Return the deltas of a chunk."""
        ...

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        """Return the deltas that are known at the end only."""
        ...

    @property
    def has_calls(self) -> bool:
        """True if the answer calls a tool."""
        ...

    @property
    def reasoning_tokens(self) -> int:
        """Number of tokens of the reasoning, after the end; a token counts if a part of its text is reasoning."""
        ...


class PlainParts:
    """All text is content."""

    has_calls = False
    reasoning_tokens = 0

    def add(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Return the chunk's text as content."""
        return [{"content": chunk.text}] if chunk.text else []

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        """Return nothing: all text has been sent."""
        return []


class ParsedParts:
    """Parts by the tokenizer's response template.

    Args:
        detokenizer: of the model.
        prompt_ids: of the conversation.
        tools: as in the request.
        whole: True to send everything at the end, because a stop string can still cut the text.
    """

    def __init__(
        self,
        detokenizer: Detokenizer,
        prompt_ids: Sequence[int],
        tools: Sequence[Any] | None,
        *,
        whole: bool,
    ) -> None:
        self._tokenizer = tokenizer = detokenizer.tokenizer
        self._prompt_ids, self._prompt = prompt_ids, raw_text(tokenizer, prompt_ids)
        self._tools = tools
        self._raw = Detokenizer(tokenizer, skip_special_tokens=False)
        self._state = self._raw.start(prompt_ids)
        given = None if tools is None else list(tools)
        parser: Any = tokenizer
        self._parser = None if whole else parser.get_response_parser(prefix=self._prompt, tools=given)
        self._sent = ""
        self._reasoning: list[str] = []
        self._calls = self.reasoning_tokens = 0

    @property
    def has_calls(self) -> bool:
        """True if the answer calls a tool."""
        return self._calls > 0

    def add(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Return the deltas of a chunk's tokens."""
        text = ""
        for token in chunk.token_ids:
            self._state, piece = self._raw.advance(self._state, token)
            text += piece
        return self._feed(text)

    def _feed(self, text: str) -> list[dict[str, Any]]:
        if self._parser is None:
            return []
        try:
            return self._deltas(self._parser.feed(text))
        except Exception:  # a malformed call: the rest is sent as it is, at the end
            self._parser = None
            return []

    def _deltas(self, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for event in events:
            field = event["field"]
            if event["type"] == "region_chunk" and event["text"] and not event.get("dirty"):
                if field == "content":
                    self._sent += event["text"]
                    deltas.append({"content": event["text"]})
                elif field in _REASONING:
                    self._reasoning.append(event["text"])
                    deltas.append({"reasoning_content": event["text"]})
            elif event["type"] == "region_close" and field == "tool_calls":
                value = event["value"]
                deltas += [self._call(each) for each in (value if isinstance(value, list) else [value])]
        return deltas

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        name, arguments = name_and_arguments(call)
        self._calls += 1
        return {"tool_calls": [call_object(name, arguments, self._calls - 1)]}

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        """Return the rest: all of a whole answer, or the raw text after a malformed call."""
        deltas = self._rest(completion)
        self.reasoning_tokens = num_tokens_of(self._reasoning, self._raw.pieces(self._prompt_ids, completion.token_ids))
        return deltas

    def _rest(self, completion: Completion) -> list[dict[str, Any]]:
        if self._parser is not None:
            deltas = self._feed(self._raw.flush(self._state))
            try:
                return [*deltas, *self._deltas(self._parser.finalize()[1])] if self._parser is not None else deltas
            except Exception:  # a call that was cut short by the token limit
                self._parser = None
        parsed = parse_completion(completion, self._tokenizer, self._prompt, self._tools)
        deltas = []
        if parsed.reasoning and not self._sent:
            self._reasoning = [parsed.reasoning]
            deltas.append({"reasoning_content": parsed.reasoning})
        if rest := parsed.content.removeprefix(self._sent):
            deltas.append({"content": rest})
        for name, arguments in parsed.calls[self._calls :]:
            deltas.append({"tool_calls": [call_object(name, arguments, self._calls)]})
            self._calls += 1
        return deltas


def whole(parts: MessageParts, completion: Completion) -> Parsed:
    """Return a whole answer in the parts of its stream."""
    chunk = Chunk(text=completion.text, token_ids=completion.token_ids, logprobs=completion.logprobs)
    content = reasoning = ""
    calls: list[tuple[str, str]] = []
    for delta in (*parts.add(chunk), *parts.end(completion)):
        content += delta.get("content", "")
        reasoning += delta.get("reasoning_content", "")
        calls += [(call["function"]["name"], call["function"]["arguments"]) for call in delta.get("tool_calls", ())]
    return Parsed(
        content=content, reasoning=reasoning or None, calls=tuple(calls), reasoning_tokens=parts.reasoning_tokens
    )


def num_tokens_of(texts: Sequence[str], pieces: Sequence[str]) -> int:
    """Return the number of tokens that have a part in one of the texts.

    Args:
        texts: parts of the answer, in its order.
        pieces: the text of each token of the answer.
    """
    answer = "".join(pieces)
    ends = list(accumulate(map(len, pieces)))
    tokens: set[int] = set()
    at = 0
    for text in texts:
        begin = answer.find(text, at)
        if text and begin >= 0:
            at = begin + len(text)
            tokens.update(range(bisect_right(ends, begin), bisect_left(ends, at) + 1))
    return len(tokens)


def raw_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Return the text of tokens with special tokens."""
    text: str = tokenizer.decode(list(ids), skip_special_tokens=False)
    return text


def parse_completion(completion: Completion, tokenizer: Any, prompt: str, tools: Sequence[Any] | None) -> Parsed:
    """Return a whole answer in parts; the text alone if the tokenizer lacks a response template."""
    if getattr(tokenizer, "response_template", None) is None:
        return Parsed(content=completion.text)
    if completion.finish_reason == "stop":  # cut at the stop string, which the raw text still has
        return parse(completion.text, tokenizer=tokenizer, prompt=prompt, tools=tools, shown=completion.text)
    raw = raw_text(tokenizer, completion.token_ids)
    return parse(raw, tokenizer=tokenizer, prompt=prompt, tools=tools, shown=completion.text)

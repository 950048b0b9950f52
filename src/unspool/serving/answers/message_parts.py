"""The parts of an answer as they stream: content, reasoning and tool calls.

With a response template, transformers' parser tells the parts apart; else all text is content.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any, Final, Protocol

from unspool.results import Chunk, Completion
from unspool.serving.requests.tools import Parsed, call_object, name_and_arguments
from unspool.text.detokenize import Detokenizer
from unspool.text.emit import TextEmitter

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
        stops: the request's stop strings.
    """

    def __init__(
        self, detokenizer: Detokenizer, prompt_ids: Sequence[int], tools: Sequence[Any] | None, *, stops: Sequence[str]
    ) -> None:
        from transformers.utils.chat_parsing.response_templates import load_response_template

        tokenizer: Any = detokenizer.tokenizer
        self._detokenizer, self._prompt_ids = detokenizer, prompt_ids
        # The template reads special tokens, too. Text after a stop string never reaches the parser.
        self._emitter = TextEmitter(detokenizer, prompt_ids, stops=tuple(stops), special=True)
        prompt = tokenizer.decode(list(prompt_ids), skip_special_tokens=False)
        given = None if tools is None else list(tools)
        self._parser: Any = tokenizer.get_response_parser(prefix=prompt, tools=given)
        self._fields = load_response_template(tokenizer.response_template).fields
        self._text = ""
        self._read = self._told = 0  # the parser has read `_text[:_read]`; the deltas tell `_text[:_told]`
        self._reasoning: list[str] = []
        self._calls = self.reasoning_tokens = 0

    @property
    def has_calls(self) -> bool:
        """True if the answer calls a tool."""
        return self._calls > 0

    def add(self, chunk: Chunk) -> list[dict[str, Any]]:
        """Return the deltas of a chunk's tokens."""
        # Token by token, so that the place of a malformed call does not depend on the division into chunks.
        return [delta for token in chunk.token_ids for delta in self._feed(self._emitter.push((token,)))]

    def _feed(self, text: str) -> list[dict[str, Any]]:
        self._text += text
        if self._parser is None or not text:
            return []
        try:
            return self._deltas(self._parser.feed(text))
        except Exception:  # a malformed call; the parser raises errors of several kinds
            self._parser = None
            return []

    def _deltas(self, events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for event in events:
            field = event["field"]
            if event["type"] == "region_chunk":
                deltas += self._piece(field, event["text"], is_final=not event.get("dirty"))
            elif event["type"] == "region_close":
                if field == "tool_calls":
                    value = event["value"]
                    deltas += [self._call(each) for each in (value if isinstance(value, list) else [value])]
                self._close(field)
        return deltas

    def _piece(self, field: str, text: str, *, is_final: bool) -> list[dict[str, Any]]:
        """Return the delta of a piece of a region. is_final: False if only the whole region has a meaning."""
        begin = self._text.find(text, self._read)
        self._read = max(self._read, begin + len(text))
        if not is_final or not text:
            return []
        if field == "content":
            self._told = self._read
            return [{"content": text}]
        if field in _REASONING:
            self._told = self._read
            self._reasoning.append(text)
            return [{"reasoning_content": text}]
        return []

    def _close(self, field: str) -> None:
        """Note the end of a region: its text, and the mark behind it, have been told."""
        mark = self._fields[field].close_re
        found = None if mark is None else mark.match(self._text, self._read)
        self._read = self._told = self._read if found is None else found.end()

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        name, arguments = name_and_arguments(call)
        self._calls += 1
        return {"tool_calls": [call_object(name, arguments, self._calls - 1)]}

    def end(self, completion: Completion) -> list[dict[str, Any]]:
        """Return the rest; after a malformed call, it is text."""
        deltas = self._feed(self._emitter.finish(completion.finish_reason))
        if self._parser is not None:
            try:
                deltas += self._deltas(self._parser.finalize()[1])
            except Exception:  # a call that was cut short by the token limit
                self._parser = None
        if self._parser is None and (rest := self._rest(completion)):
            deltas.append({"content": rest})
        self.reasoning_tokens = num_tokens_of(self._reasoning, self._pieces(completion.token_ids))
        return deltas

    def _rest(self, completion: Completion) -> str:
        """Return the text after the last part, without the token that ended the output."""
        rest = self._text[self._told :]
        if completion.finish_reason == "eos" and completion.token_ids:
            rest = rest.removesuffix(self._detokenizer.hidden(completion.token_ids[-1]))
        return rest

    def _pieces(self, token_ids: Sequence[int]) -> list[str]:
        """Return the text of each token; special tokens have theirs."""
        shown = self._detokenizer.pieces(self._prompt_ids, token_ids)
        return [text + self._detokenizer.hidden(token) for text, token in zip(shown, token_ids, strict=True)]


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

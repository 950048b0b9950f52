"""Tools: whether the chat template takes them, and the calls and the reasoning in an answer.

The tokenizer's response template parses answers, through transformers. Nothing is parsed here.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from unspool.grammars.source import JSON_DEFAULTS
from unspool.serving.errors import ApiError, refused

_PLAIN: Final = re.compile(r"[\w<>/|: -]+")
"""Patterns that match themselves only."""


class Parsed(NamedTuple):
    """An answer in parts. calls: function name and arguments as JSON text. reasoning_tokens: their number."""

    content: str
    reasoning: str | None = None
    calls: tuple[tuple[str, str], ...] = ()
    reasoning_tokens: int = 0


def check_tools(tools: Sequence[Mapping[str, Any]] | None, tokenizer: Any, chat_template: str | None) -> None:
    """Check that tools can be rendered, and that calls can be found in an answer.

    Raises:
        ApiError: 400 if the list is empty or malformed, if the template ignores tools, or if the tokenizer lacks a
            response template.
    """
    if tools is None:
        return
    if not tools:
        raise refused("tools", "must have at least one tool; leave it out for none")
    for index, tool in enumerate(tools):
        function = tool.get("function")
        if tool.get("type", "function") != "function" or not isinstance(function, Mapping) or not function.get("name"):
            raise ApiError(400, f"`tools.{index}` must be a function with a name", param=f"tools.{index}")
    messages = [{"role": "user", "content": "?"}]
    try:
        plain, with_tools = (
            tokenizer.apply_chat_template(messages, tools=each, chat_template=chat_template, tokenize=False)
            for each in (None, list(tools))
        )
    except Exception as error:  # a template can raise any exception
        raise ApiError(400, f"the chat template rejects these tools: {error}", param="tools") from None
    if plain == with_tools:
        raise ApiError(400, "this model's chat template does not take tools", param="tools", code="tools_unsupported")
    if getattr(tokenizer, "response_template", None) is None:
        raise ApiError(
            400,
            "this model's tokenizer lacks a response template, so tool calls in its answers cannot be told from text",
            param="tools",
            code="tools_unsupported",
        )


def name_and_arguments(call: Mapping[str, Any]) -> tuple[str, str]:
    """Return the name of a called function, and its arguments as JSON text."""
    function = call.get("function", call)
    arguments = function.get("arguments", {})
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return str(function.get("name")), text


def call_object(name: str, arguments: str, index: int | None = None) -> dict[str, Any]:
    """Return a tool call for an answer; `index` is needed in streams only."""
    head = {} if index is None else {"index": index}
    return {
        **head,
        "id": f"call_{secrets.token_hex(12)}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def call_grammar(tools: Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Return a grammar, in Lark's form, of one call of one of the tools, in the form of the response template.

    Raises:
        ApiError: 400 if the template's form of a call is not JSON between two fixed texts.
    """
    template = getattr(tokenizer, "response_template", None) or {}
    field = template.get("fields", {}).get("tool_calls", {})
    begin, end = _fixed(field, "open"), _fixed(field, "close")
    if field.get("content") != "json" or begin is None or end is None:
        raise refused(
            "tool_choice",
            "can only be none or auto with this model: its form of a call is not JSON between two fixed texts",
            code="unsupported_value",
        )
    special = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}

    def literal(text: str) -> str:
        return text if text in special and text.startswith("<") else json.dumps(text, ensure_ascii=False)

    schemas = [_call_schema(tool["function"]) for tool in tools]
    schema = {**(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}), "x-guidance": JSON_DEFAULTS}
    return f'start: {literal(begin)} "\\n" call "\\n" {literal(end)}\ncall: %json {json.dumps(schema)}\n'


def _fixed(field: Mapping[str, Any], key: str) -> str | None:
    """Return the fixed text of a field's border; None if it is a pattern."""
    found = field.get(key)
    if isinstance(found, list):
        found = found[0]
    if found is None:
        pattern = str(field.get(f"{key}_pattern", "")).removeprefix(r"\s*")
        found = pattern if pattern and _PLAIN.fullmatch(pattern) else None
    return found if isinstance(found, str) and found else None


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    arguments = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": arguments},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }

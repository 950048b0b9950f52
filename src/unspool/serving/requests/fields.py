"""The table of request fields: honored, and inert. The request models and docs/serving.md derive from it.

Owns the fields of each route, their types and their neutral values. Knows no engine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeAlias

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    WithJsonSchema,
    create_model,
)

from unspool.config import OPTIONS, Option

Route: TypeAlias = Literal["completions", "chat"]
Source: TypeAlias = Literal["OpenAI", "vLLM", "Unspool", "inert"]

BOTH: Final[tuple[Route, ...]] = ("completions", "chat")
COMPLETIONS: Final[tuple[Route, ...]] = ("completions",)
CHAT: Final[tuple[Route, ...]] = ("chat",)

Number: TypeAlias = StrictInt | StrictFloat
Ids: TypeAlias = list[StrictInt]


class StreamOptions(BaseModel):
    """OpenAI's `stream_options`."""

    model_config = ConfigDict(extra="forbid")

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None


@dataclass(frozen=True, slots=True)
class RequestField:
    """One field of a request.

    name: in JSON. type: its annotation. help: one sentence. routes: that know it. source: the API that named it; an
    inert field is accepted and changes nothing. neutral: values that ask for nothing. option: the option it sets, if
    its name differs.
    """

    name: str
    type: Any
    help: str
    routes: tuple[Route, ...] = BOTH
    source: Source = "OpenAI"
    neutral: tuple[Any, ...] = ()
    option: str = ""


_STOP: Final = StrictStr | list[StrictStr]
_JSON_SCHEMA: Final = dict[str, Any] | StrictStr

_OPENAI: Final = (
    RequestField("model", StrictStr, "Name of the model; see GET /v1/models."),
    RequestField(
        "prompt",
        StrictStr | Ids | list[StrictStr] | list[Ids],
        "One text, one list of token ids, or a list of either.",
        COMPLETIONS,
    ),
    RequestField("messages", list[dict[str, Any]], "The conversation, oldest message first.", CHAT),
    RequestField(
        "max_tokens",
        StrictInt,
        "Most new tokens; 16 for completions. 0 with `echo` only scores the prompt.",
        option="max_new_tokens",
    ),
    RequestField("max_completion_tokens", StrictInt, "Newer name of `max_tokens`.", CHAT, option="max_new_tokens"),
    RequestField("temperature", Number, "0 is greedy; 1 if it is not given.", option="temperature"),
    RequestField("top_p", Number, "Nucleus sampling.", neutral=(1,), option="top_p"),
    RequestField("n", StrictInt, "Number of outputs per prompt.", neutral=(1,), option="num_return_sequences"),
    RequestField(
        "best_of",
        StrictInt,
        "Draw this many outputs and return the best `n`.",
        COMPLETIONS,
        neutral=(1,),
        option="best_of",
    ),
    RequestField(
        "stop", _STOP, "Texts that end an output; they are not part of it.", neutral=([],), option="stop_strings"
    ),
    RequestField("stream", StrictBool, "Send the text as server-sent events while it is made.", neutral=(False,)),
    RequestField("stream_options", StreamOptions, "`include_usage`: send the usage before the end of a stream."),
    RequestField("logprobs", StrictInt, "Log-probability of each token, and of this many alternatives.", COMPLETIONS),
    RequestField("logprobs", StrictBool, "Log-probability of each token.", CHAT, neutral=(False,)),
    RequestField(
        "top_logprobs", StrictInt, "Number of alternatives per token, 0 to 20; needs `logprobs`.", CHAT, neutral=(0,)
    ),
    RequestField("echo", StrictBool, "Put the prompt before the text.", COMPLETIONS, neutral=(False,)),
    RequestField(
        "suffix",
        StrictStr,
        "Text after the gap; needs a tokenizer with fill-in-the-middle tokens.",
        COMPLETIONS,
        neutral=("",),
    ),
    RequestField(
        "presence_penalty",
        Number,
        "Subtracted once from the logits of tokens of the output.",
        neutral=(0,),
        option="presence_penalty",
    ),
    RequestField(
        "frequency_penalty",
        Number,
        "Subtracted from the logits of tokens of the output, per occurrence.",
        neutral=(0,),
        option="frequency_penalty",
    ),
    RequestField(
        "logit_bias",
        dict[StrictStr, Number],
        "Token id --> number added to its logit; -100 forbids, 100 forces.",
        neutral=({},),
        option="sequence_bias",
    ),
    RequestField("seed", StrictInt, "Seed of the draws; the same seed repeats the text.", option="seed"),
    RequestField(
        "response_format", dict[str, Any], "`text`, `json_object` or `json_schema`.", neutral=({"type": "text"},)
    ),
    RequestField("tools", list[dict[str, Any]], "Functions that the model can call, as JSON schemas.", CHAT),
    RequestField("tool_choice", StrictStr | dict[str, Any], "`none`, `auto`, `required`, or one function.", CHAT),
    RequestField("modalities", list[StrictStr], "Only text.", CHAT, neutral=(["text"],)),
)

_VLLM: Final = (
    RequestField("min_tokens", StrictInt, "Fewest new tokens.", source="vLLM", neutral=(0,), option="min_new_tokens"),
    RequestField(
        "stop_token_ids",
        Ids,
        "Tokens that end an output, besides the end-of-sequence tokens.",
        source="vLLM",
        neutral=([],),
    ),
    RequestField("include_stop_str_in_output", StrictBool, "Only false.", source="vLLM", neutral=(False,)),
    RequestField("skip_special_tokens", StrictBool, "Only true.", source="vLLM", neutral=(True,)),
    RequestField("spaces_between_special_tokens", StrictBool, "Only true.", source="vLLM", neutral=(True,)),
    RequestField("bad_words", list[StrictStr], "Texts that must not occur.", source="vLLM", neutral=([],)),
    RequestField("allowed_token_ids", Ids, "The only tokens that can be chosen.", source="vLLM"),
    RequestField(
        "use_beam_search", StrictBool, "Beam search with `n` beams, or `best_of`.", source="vLLM", neutral=(False,)
    ),
    RequestField(
        "truncate_prompt_tokens", StrictInt, "Keep only the last tokens of the prompt.", source="vLLM", neutral=(-1,)
    ),
    RequestField(
        "add_special_tokens", StrictBool, "False: the tokenizer adds no special tokens to a text.", source="vLLM"
    ),
    RequestField(
        "cache_salt",
        StrictStr,
        "Requests with different salts share no cached prefix.",
        source="vLLM",
        neutral=("",),
    ),
    RequestField(
        "return_token_ids",
        StrictBool,
        "Add `token_ids` and `prompt_token_ids` to each choice.",
        source="vLLM",
        neutral=(False,),
    ),
    RequestField(
        "return_tokens_as_token_ids",
        StrictBool,
        "Name tokens `token_id:N` in log-probabilities.",
        source="vLLM",
        neutral=(False,),
    ),
    RequestField(
        "prompt_logprobs",
        StrictInt,
        "Log-probability and rank of each prompt token, and of this many alternatives, 0 to 20; not in a stream.",
        source="vLLM",
    ),
    RequestField(
        "structured_outputs",
        dict[str, Any],
        "One of json, regex, choice, grammar, json_object.",
        source="vLLM",
        neutral=({},),
    ),
    RequestField(
        "guided_json", _JSON_SCHEMA, "Older name of `structured_outputs.json`.", source="vLLM", option="json_schema"
    ),
    RequestField("guided_regex", StrictStr, "Older name of `structured_outputs.regex`.", source="vLLM", option="regex"),
    RequestField(
        "guided_choice", list[StrictStr], "Older name of `structured_outputs.choice`.", source="vLLM", option="choice"
    ),
    RequestField(
        "guided_grammar", StrictStr, "Older name of `structured_outputs.grammar`.", source="vLLM", option="grammar"
    ),
    RequestField("chat_template", StrictStr, "A Jinja template, or the name of one of the tokenizer's.", CHAT, "vLLM"),
    RequestField("chat_template_kwargs", dict[str, Any], "Further variables of the template.", CHAT, "vLLM", ({},)),
    RequestField("add_generation_prompt", StrictBool, "Begin the assistant's turn.", CHAT, "vLLM"),
    RequestField("continue_final_message", StrictBool, "Continue the last message.", CHAT, "vLLM", (False,)),
)

_UNSPOOL: Final = (
    RequestField(
        "assistant",
        StrictStr,
        "Name of a draft model that the server was started with.",
        source="Unspool",
        option="assistant_model",
    ),
    RequestField(
        "tentative",
        StrictBool,
        "Streams: add the uncommitted text as `unspool.tentative`.",
        source="Unspool",
        neutral=(False,),
    ),
)

_INERT: Final = tuple(
    RequestField(name, Any, "Accepted; changes nothing.", routes, "inert")
    for name, routes in {
        "user": BOTH,
        "metadata": BOTH,
        "store": BOTH,
        "service_tier": BOTH,
        "safety_identifier": BOTH,
        "prompt_cache_key": BOTH,
        "prompt_cache_retention": BOTH,
        "prompt_cache_options": BOTH,
        "client_metadata": BOTH,
        "parallel_tool_calls": CHAT,
        "guided_decoding_backend": BOTH,
    }.items()
)

_OFF: Final[Mapping[str, tuple[Any, ...]]] = {"top_k": (0, -1), "min_p": (0,), "repetition_penalty": (1,)}
"""Values of options that other servers read as off."""


def _of_option(option: Option) -> RequestField:
    kind = Annotated[Any, WithJsonSchema(option.kind.schema)]
    return RequestField(option.name, kind, option.help, source="Unspool", neutral=_OFF.get(option.name, ()))


def _fields() -> tuple[RequestField, ...]:
    named = (*_OPENAI, *_VLLM, *_UNSPOOL, *_INERT)
    known = {field.name for field in named}
    options = (
        _of_option(option) for option in OPTIONS.values() if option.door != "drop_in" and option.name not in known
    )
    return (*named, *options)


FIELDS: Final = _fields()
"""Every field of every route."""


@cache
def fields_of(route: Route) -> Mapping[str, RequestField]:
    """Return the fields of a route by name."""
    return {field.name: field for field in FIELDS if route in field.routes}


_REQUIRED: Final[Mapping[Route, frozenset[str]]] = {
    "completions": frozenset({"model", "prompt"}),
    "chat": frozenset({"model", "messages"}),
}


@cache
def body_model(route: Route) -> type[BaseModel]:
    """Return the pydantic model of a route's body, for validation and the OpenAPI document."""
    required = _REQUIRED[route]
    parts: dict[str, Any] = {
        name: (field.type, Field(description=field.help))
        if name in required
        else (field.type | None, Field(None, description=field.help))
        for name, field in fields_of(route).items()
    }
    name = {"completions": "CompletionRequest", "chat": "ChatCompletionRequest"}[route]
    return create_model(name, __config__=ConfigDict(extra="forbid", protected_namespaces=()), **parts)

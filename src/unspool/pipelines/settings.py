"""Arguments of a pipeline's call that are not options of generation.

Owns: the argument names of transformers' pipelines, and how a call's arguments override the pipeline's. Does not know:
options of generation, which are all other names.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Final, Literal, TypeAlias

from unspool.config import GenerationConfig
from unspool.errors import OptionError
from unspool.pipelines.tasks import Task

Returned: TypeAlias = Literal["full", "new", "ids"]
"""Content of a result: the prompt with its continuation, the new text only, or token ids."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one call.

    batch_size: most running requests; None for all of a list.
    progress: show a progress bar over the prompts of a list; None to show it in a terminal from 16 prompts on.
    returned: see Returned. clean_up_tokenization_spaces, skip_special_tokens: how ids are decoded; None for the
        tokenizer's own way, and without special tokens.
    prefix: prepended to every text and not shown in results; None for the model's own.
    handle_long_generation: "hole" cuts the beginning of a prompt if new tokens do not fit; None for no cut.
    tokenizer_options: arguments of the tokenizer for prompts (`truncation`, `add_special_tokens`, ...).
    continue_final_message: True to continue the last message; None to continue it only if it is the assistant's.
    tools, documents: passed to the chat template. streamer: one of transformers', fed prompt by prompt.
    src_lang, tgt_lang: languages of a translation, for tokenizers with language tokens.
    strict: True to raise an OptionError for options that the strategy does not read; False to ignore them with a
        warning, and to convert values such as 6.0 to 6.
    """

    batch_size: int | None = None
    progress: bool | None = None
    returned: Returned = "full"
    clean_up_tokenization_spaces: bool | None = None
    skip_special_tokens: bool | None = None
    prefix: str | None = None
    handle_long_generation: Literal["hole"] | None = None
    tokenizer_options: Mapping[str, Any] = field(default_factory=dict)
    continue_final_message: bool | None = None
    tools: Sequence[Any] | None = None
    documents: Sequence[Any] | None = None
    streamer: Any = None
    src_lang: str | None = None
    tgt_lang: str | None = None
    strict: bool = False


_RETURNS: Final = ("return_full_text", "return_tensors", "return_text")
_TOKENIZING: Final = ("add_special_tokens", "truncation", "tokenizer_encode_kwargs")
_WITHOUT_EFFECT: Final = ("num_workers", "padding")  # prompts are encoded in this process, and pads are never fed
_PLAIN: Final = frozenset(each.name for each in fields(Settings)) - {"returned", "tokenizer_options"}
_NAMES: Final = _PLAIN | {*_RETURNS, *_TOKENIZING, *_WITHOUT_EFFECT}

_CONTINUING: Final = frozenset(
    {"return_full_text", "handle_long_generation", "continue_final_message", "tools", "documents"}
)
_TRANSLATING: Final = frozenset({"src_lang", "tgt_lang"})
_RIVALS: Final = (("max_new_tokens", "max_length"), ("min_new_tokens", "min_length"))

_FLAGS: Final = (
    "progress",
    "clean_up_tokenization_spaces",
    "skip_special_tokens",
    "continue_final_message",
    "strict",
    *_RETURNS,
)
_TEXTS: Final = ("prefix", "src_lang", "tgt_lang")


def split(given: Mapping[str, Any], task: Task) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (arguments of the pipeline, options of generation). The former are checked.

    Raises:
        OptionError: if a value has another type or is not allowed, or two arguments exclude each other.
    """
    own = {name: value for name, value in given.items() if name in _NAMES}
    options = {name: value for name, value in given.items() if name not in _NAMES}
    for name, value in own.items():
        if value is not None:
            _check(name, value, task)
    if "stop_sequence" in options:
        stop = options.pop("stop_sequence")
        if options.get("stop_strings") is not None:
            allowed = "is another name for `stop_strings`"
            raise OptionError("stop_sequence", stop, allowed, "leave out one of the two")
        options["stop_strings"] = stop
    _returned(own)
    return own, options


def settings_of(pipeline: Mapping[str, Any], call: Mapping[str, Any]) -> Settings:
    """Return the settings of a call. Its arguments override those of the pipeline."""
    both = {**pipeline, **call}
    returned = _returned(call) or _returned(pipeline) or "full"
    tokenizing = {name: both[name] for name in _TOKENIZING[:2] if both.get(name) is not None}
    tokenizing |= both.get("tokenizer_encode_kwargs") or {}
    plain = {name: both[name] for name in _PLAIN if name in both}
    return Settings(returned=returned, tokenizer_options=tokenizing, **plain)


def merged_options(pipeline: Mapping[str, Any], call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of generation of a call. They override those of the pipeline.

    A call's `generation_config` replaces all options of the pipeline. A call's `max_new_tokens` also replaces the
    pipeline's `max_length`.
    """
    if call.get("generation_config") is not None:
        return dict(call)
    replaced = {
        rival
        for pair in _RIVALS
        for name, rival in (pair, pair[::-1])
        if call.get(name) is not None and rival not in call
    }
    return {**{name: value for name, value in pipeline.items() if name not in replaced}, **call}


def with_truncation(settings: Settings, options: Mapping[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """Return settings and options with `max_length` as the prompt's length for `truncation`.

    If `max_new_tokens` is given too, `max_length` means nothing else.
    """
    rest, tokenizing = dict(options), settings.tokenizer_options
    length = rest.get("max_length")
    if length is None or not tokenizing.get("truncation") or "max_length" in tokenizing:
        return settings, rest
    if rest.get("max_new_tokens") is not None:
        del rest["max_length"]
    return replace(settings, tokenizer_options={**tokenizing, "max_length": length}), rest


def without_options(
    options: Mapping[str, Any], config: GenerationConfig | None, names: Collection[str]
) -> tuple[dict[str, Any], GenerationConfig | None]:
    """Return the options of generation and the caller's config with these options left out or off."""
    rest = {name: value for name, value in options.items() if name not in names}
    if config is not None:
        config = config.replace(**dict.fromkeys(name for name in names if name in config.explicit))
    return rest, config


def _check(name: str, value: Any, task: Task) -> None:
    if name in _CONTINUING and task.reads_source:
        allowed = f"belongs to text-generation and is not supported for {task.name}"
        raise OptionError(name, _shown(value), allowed, "leave it out")
    if name in _TRANSLATING and not task.translates:
        raise OptionError(name, value, f"belongs to translation and is not supported for {task.name}", "leave it out")
    if name in _FLAGS and not isinstance(value, bool):
        raise OptionError(name, value, "must be True or False", "leave it out for the default")
    if name in _TEXTS and not isinstance(value, str):
        raise OptionError(name, value, "must be a text", "leave it out for none")
    if name == "batch_size" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise OptionError(name, value, "must be an integer of at least 1", "leave it out for no limit")
    if name == "handle_long_generation" and value != "hole":
        raise OptionError(name, value, "must be 'hole' or None", "leave it out to have long prompts refused")
    if name == "streamer" and not (hasattr(value, "put") and hasattr(value, "end")):
        raise OptionError(name, _shown(value), "must have `put` and `end`", "use one of transformers' streamers")
    if name == "tokenizer_encode_kwargs" and not isinstance(value, Mapping):
        allowed = "must be a dict of arguments of the tokenizer"
        raise OptionError(name, _shown(value), allowed, "leave it out for none")


def _returned(given: Mapping[str, Any]) -> Returned | None:
    """Return the requested content of results, or None if these arguments do not choose it.

    Raises:
        OptionError: if two of them exclude each other, or results would be empty.
    """
    full, ids, text = (given.get(name) for name in _RETURNS)
    if full is not None and (ids or text is not None):
        other = "return_tensors" if ids else "return_text"
        allowed = f"cannot be given together with `{other}`"
        raise OptionError("return_full_text", full, allowed, "leave out one of the two")
    if ids and text:
        raise OptionError(
            "return_text", text, "cannot be given together with `return_tensors`", "leave out one of the two"
        )
    if text is False and not ids:
        raise OptionError("return_text", text, "would leave nothing to return", "set return_tensors=True")
    if ids:
        return "ids"
    return None if full is None else "full" if full else "new"


def _shown(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else type(value)

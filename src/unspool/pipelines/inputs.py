"""What a pipeline is called with: one text or conversation, several, or as many as an iterator brings.

Owns: telling them apart, and what each becomes for the model. Does not know: options of generation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from unspool.errors import OptionError, PromptError
from unspool.inputs.prompts import encode
from unspool.pipelines.settings import Settings
from unspool.text.chat import Message, continued, encode_chat, is_chat, is_message, read_chat

Input: TypeAlias = "str | tuple[Message, ...]"
Shape: TypeAlias = Literal["one", "list", "lazy"]

_EXPECTED: Final = "a pipeline reads a text, a list of messages, or a list or an iterator of either"


class Inputs(NamedTuple):
    """What was given, item by item; `length` is None where it is not known before the end."""

    items: Iterable[Any]
    shape: Shape
    length: int | None


def read_inputs(given: Any) -> Inputs:
    """Sort out one input from several. Lists and tuples are read at once, all that iterates else as it is needed.

    Raises:
        PromptError: it is none of these.
    """
    if isinstance(given, str) or is_chat(given):
        return Inputs([given], "one", 1)
    if isinstance(given, list | tuple):
        return Inputs(given, "list", len(given))
    if isinstance(given, Mapping | bytes | bytearray) or not (
        isinstance(given, Iterable) or hasattr(given, "__getitem__")
    ):
        raise PromptError(f"{_EXPECTED}; got {type(given).__name__}")
    count = len(given) if isinstance(given, Sized) else None
    if isinstance(given, Iterator):
        # A generator of messages is one conversation: its first item tells.
        first = next(given, None)
        if is_message(first):
            return Inputs([[first, *given]], "one", 1)
        return Inputs([] if first is None else chain([first], given), "lazy", count)
    return Inputs(_each(given), "lazy", count)


def _each(given: Any) -> Iterator[Any]:
    """Yield the items of a data set, which may only have `__getitem__` and a length."""
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        return (given[index] for index in range(len(given)))
    return iter(given)


def read_input(item: Any) -> Input:
    """Return one text or conversation.

    Raises:
        PromptError: it is neither.
    """
    if isinstance(item, str):
        return item
    if is_chat(item):
        return read_chat(item)
    raise PromptError(f"{_EXPECTED}; got {item!r}; for token ids use LanguageModel.generate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One input ready for the model.

    given: as the caller gave it. prompt: what the model reads. opening: the token ids its output begins with, which a
    model that reads a source has apart from the prompt. options: of generation, for this input alone. continues:
    whether a conversation's last message goes on.
    """

    given: Input
    prompt: str | tuple[int, ...]
    opening: tuple[int, ...]
    options: Mapping[str, Any]
    continues: bool = False


def continues(messages: tuple[Message, ...], settings: Settings) -> bool:
    """Return whether the last message is to be continued: by the caller's word, or as the assistant's beginning."""
    if settings.continue_final_message is not None:
        return settings.continue_final_message
    return bool(messages[-1]["role"] == "assistant")


def encode_input(
    given: Input, tokenizer: Any, bos_token_id: int | None, settings: Settings, *, prefix: str
) -> tuple[int, ...]:
    """Return the token ids of a text behind the prefix, or of a conversation by the chat template.

    Raises:
        PromptError: the tokenizer or its template does not take it.
    """
    asked = settings.tokenizer_options
    if isinstance(given, str):
        return encode(prefix + given, _Told(tokenizer, asked) if asked else tokenizer, bos_token_id)
    if continues(given, settings):
        continued(given[-1], "")
    return encode_chat(
        given,
        tokenizer,
        tools=settings.tools,
        continue_final_message=continues(given, settings),
        template_options={} if settings.documents is None else {"documents": settings.documents},
        # The template writes special tokens itself.
        tokenizer_options={name: value for name, value in asked.items() if name != "add_special_tokens"},
    )


def hole(ids: tuple[int, ...], *, room: int, longest: int | None) -> tuple[int, ...]:
    """Return the last ids of a prompt, so many that `room` new tokens fit behind them.

    Args:
        longest: most tokens in one sequence; None for no bound.

    Raises:
        OptionError: the new tokens alone do not fit.
    """
    if longest is None or len(ids) + room <= longest:
        return ids
    kept = longest - room
    if kept <= 0:
        allowed = f"cannot make room for {room} new tokens where {longest} are all"
        raise OptionError("handle_long_generation", "hole", allowed, "lower `max_new_tokens`")
    return ids[-kept:]


class _Told:
    """A tokenizer that is always called with the same arguments besides the text."""

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any]) -> None:
        self._tokenizer, self._arguments = tokenizer, arguments

    def __call__(self, text: str) -> Any:
        return self._tokenizer(text, **self._arguments)

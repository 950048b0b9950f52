"""Inputs of a pipeline: one text or conversation, a list of them, or an iterator.

Owns: telling these apart, and encoding each input for the model. Does not know: options of generation.
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
    """The inputs, item by item; `length` is None if the number is unknown before the end."""

    items: Iterable[Any]
    shape: Shape
    length: int | None


def read_inputs(given: Any) -> Inputs:
    """Sort inputs into one, a list or a lazy iterable. Lists and tuples are read at once, other iterables on demand.

    Raises:
        PromptError: if the object is of another type.
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
        # A generator of messages is one conversation: its first item shows this.
        first = next(given, None)
        if is_message(first):
            return Inputs([[first, *given]], "one", 1)
        return Inputs([] if first is None else chain([first], given), "lazy", count)
    return Inputs(_each(given), "lazy", count)


def _each(given: Any) -> Iterator[Any]:
    """Yield the items of a data set, which can have `__getitem__` and a length without `__iter__`."""
    if hasattr(given, "__len__") and hasattr(given, "__getitem__"):
        return (given[index] for index in range(len(given)))
    return iter(given)


def read_input(item: Any) -> Input:
    """Return one text or conversation.

    Raises:
        PromptError: if it is neither.
    """
    if isinstance(item, str):
        return item
    if is_chat(item):
        return read_chat(item)
    raise PromptError(f"{_EXPECTED}; got {item!r}; for token ids use LanguageModel.generate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """One input ready for the model.

    given: as the caller gave it. prompt: the model's input. output_prefix: the token ids at the beginning of the
    record: the prompt, or the decoder prompt of an encoder-decoder. options: of generation, for this input only.
    continues: True if a conversation's last message is continued.
    """

    given: Input
    prompt: str | tuple[int, ...]
    output_prefix: tuple[int, ...]
    options: Mapping[str, Any]
    continues: bool = False


def continues(messages: tuple[Message, ...], settings: Settings) -> bool:
    """Return whether the last message is continued: by the setting, else if it is the assistant's."""
    if settings.continue_final_message is not None:
        return settings.continue_final_message
    return bool(messages[-1]["role"] == "assistant")


def encode_input(
    given: Input, tokenizer: Any, bos_token_id: int | None, settings: Settings, *, prefix: str
) -> tuple[int, ...]:
    """Return the token ids of a text after the prefix, or of a conversation in the chat template.

    Raises:
        PromptError: if the tokenizer or its template refuses the input.
    """
    requested = settings.tokenizer_options
    if isinstance(given, str):
        return encode(
            prefix + given, _TokenizerWithOptions(tokenizer, requested) if requested else tokenizer, bos_token_id
        )
    if continues(given, settings):
        continued(given[-1], "")
    return encode_chat(
        given,
        tokenizer,
        tools=settings.tools,
        continue_final_message=continues(given, settings),
        template_options={} if settings.documents is None else {"documents": settings.documents},
        # The template writes special tokens itself.
        tokenizer_options={name: value for name, value in requested.items() if name != "add_special_tokens"},
    )


def hole(ids: tuple[int, ...], *, room: int, longest: int | None) -> tuple[int, ...]:
    """Return the last ids of a prompt, so that `room` new tokens fit after them.

    Args:
        longest: most tokens in one sequence; None for no limit.

    Raises:
        OptionError: if the new tokens do not fit even without a prompt.
    """
    if longest is None or len(ids) + room <= longest:
        return ids
    kept = longest - room
    if kept <= 0:
        allowed = f"cannot make room for {room} new tokens, because the model holds {longest} tokens in all"
        raise OptionError("handle_long_generation", "hole", allowed, "lower `max_new_tokens`")
    return ids[-kept:]


class _TokenizerWithOptions:
    """A tokenizer that is always called with the same keyword arguments."""

    def __init__(self, tokenizer: Any, arguments: Mapping[str, Any]) -> None:
        self._tokenizer, self._arguments = tokenizer, arguments

    def __call__(self, text: str) -> Any:
        return self._tokenizer(text, **self._arguments)

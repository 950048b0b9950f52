"""Reads prompts: a text, token ids, or a list of either; and tokenizes texts."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from unspool.errors import PromptError
from unspool.text.encode import token_ids

if TYPE_CHECKING:
    import torch

Prompt: TypeAlias = "str | Sequence[int] | torch.Tensor"


class Prompts(NamedTuple):
    """One or several prompts. single: True if the caller passed one prompt, and so expects one result."""

    items: list[Any]
    single: bool


def read_prompts(given: Any) -> Prompts:
    """Tell one prompt from several.

    One prompt is a string, a list of ints or a one-dimensional tensor. Several prompts are a list of strings, a list of
    lists of ints or a two-dimensional tensor. An empty list has zero prompts.

    Raises:
        PromptError: if it is anything else.
    """
    if isinstance(given, str):
        return Prompts([given], single=True)
    if hasattr(given, "tolist"):
        given = given.tolist()
    if not isinstance(given, Sequence) or isinstance(given, bytes | bytearray):
        raise PromptError(f"a prompt is a text, a list of token ids, or a list of either; got {type(given).__name__}")
    if given and all(_is_id(item) for item in given):
        return Prompts([_ids(given)], single=True)
    return Prompts([item if isinstance(item, str) else _ids(item, index) for index, item in enumerate(given)], False)


def _is_id(item: Any) -> bool:
    return isinstance(item, Integral) and not isinstance(item, bool)


def _ids(item: Any, index: int | None = None) -> tuple[int, ...]:
    if hasattr(item, "tolist"):
        item = item.tolist()
    if isinstance(item, Sequence) and not isinstance(item, bytes | bytearray) and all(_is_id(token) for token in item):
        return tuple(int(token) for token in item)
    name = "the prompt" if index is None else f"prompt {index}"
    raise PromptError(f"{name} must be a text or a list of token ids; got {item!r}")


def encode(prompt: str | tuple[int, ...], tokenizer: Any, bos_token_id: int | None) -> tuple[int, ...]:
    """Return a prompt's token ids, with the special tokens that the tokenizer adds.

    An empty text becomes the begin-of-sequence token.

    Raises:
        PromptError: if a text lacks a tokenizer to encode it, or if an empty text lacks a begin-of-sequence token.
    """
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise PromptError("a text prompt needs a tokenizer; give `tokenizer=` to load(), or prompt with token ids")
    try:
        ids = token_ids(tokenizer, prompt)
    except (TypeError, UnicodeError) as error:  # encoders refuse a str with a lone surrogate
        raise PromptError(f"the tokenizer cannot read the prompt {prompt!r}: {error}") from error
    if ids:
        return ids
    if prompt:
        raise PromptError(
            f"the tokenizer returns no token for the prompt {prompt!r}; perhaps it lacks its vocabulary: give "
            "`tokenizer=`"
        )
    if bos_token_id is None:
        raise PromptError("the prompt is empty and the model has no begin-of-sequence token to start from")
    return (bos_token_id,)

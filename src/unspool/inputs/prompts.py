"""Reads what people give as a prompt: text, token ids, or several of either."""

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
    """One or several prompts; `single` says that one was given by itself, so that one result is wanted."""

    items: list[str | tuple[int, ...]]
    single: bool


def read_prompts(given: Any) -> Prompts:
    """Sort out one prompt from several.

    A string is one prompt, and so is a list (or one-dimensional tensor) of ints; a list of strings, a list of lists of
    ints or a two-dimensional tensor are several. An empty list is no prompts.

    Raises:
        PromptError: it is none of these.
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
    where = "the prompt" if index is None else f"prompt {index}"
    raise PromptError(f"{where} must be a text or a list of token ids; got {item!r}")


def encode(prompt: str | tuple[int, ...], tokenizer: Any, bos_token_id: int | None) -> tuple[int, ...]:
    """Return a prompt's token ids, special tokens of the tokenizer's own included.

    An empty text becomes the begin-of-sequence token alone, so that a model can start from nothing.

    Raises:
        PromptError: a text without a tokenizer, or an empty text where the model has no begin-of-sequence token.
    """
    if not isinstance(prompt, str):
        return prompt
    if tokenizer is None:
        raise PromptError("a text prompt needs a tokenizer; give `tokenizer=` to load(), or prompt with token ids")
    try:
        ids = token_ids(tokenizer, prompt)
    except (TypeError, UnicodeError) as error:  # a lone surrogate is a str that no encoder takes
        raise PromptError(f"the tokenizer cannot read the prompt {prompt!r}: {error}") from error
    if ids:
        return ids
    if prompt:
        raise PromptError(
            f"the tokenizer makes no token of the prompt {prompt!r}; it may lack its vocabulary: give `tokenizer=`"
        )
    if bos_token_id is None:
        raise PromptError("the prompt is empty and the model has no begin-of-sequence token to start from")
    return (bos_token_id,)

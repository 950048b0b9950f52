"""Texts become token ids. Owns: the one call of a tokenizer. Does not know: which lengths a model can hold."""

from __future__ import annotations

from typing import Any


def token_ids(tokenizer: Any, text: str, **options: Any) -> tuple[int, ...]:
    """Return the token ids of a text.

    transformers' tokenizers warn about long texts. The engine checks lengths itself, and its error says more.

    Args:
        tokenizer: one of transformers', or anything callable as `tokenizer(text, **options)["input_ids"]`.
        options: of the tokenizer's call, such as `add_special_tokens`.
    """
    return tuple(tokenizer(text, **options, **quiet(tokenizer))["input_ids"])


def quiet(tokenizer: Any) -> dict[str, bool]:
    """Return the options of a tokenizer's call that keep it from warning about long texts."""
    from transformers import PreTrainedTokenizerBase

    return {"verbose": False} if isinstance(tokenizer, PreTrainedTokenizerBase) else {}

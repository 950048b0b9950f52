"""Tokenization: texts to token ids.

Owns: the only call of a tokenizer. Does not know: the maximum length of a model.
"""

from __future__ import annotations

from typing import Any


def token_ids(tokenizer: Any, text: str, **options: Any) -> tuple[int, ...]:
    """Return the token ids of a text.

    Turns off the tokenizer's warning about long texts, because the engine checks the length and raises a better error.

    Args:
        tokenizer: a transformers tokenizer, or any callable with `tokenizer(text, **options)["input_ids"]`.
        options: arguments of the tokenizer's call, such as `add_special_tokens`.
    """
    return tuple(tokenizer(text, **options, **quiet(tokenizer))["input_ids"])


def quiet(tokenizer: Any) -> dict[str, bool]:
    """Return the arguments of a tokenizer's call that turn off its warning about long texts."""
    from transformers import PreTrainedTokenizerBase

    return {"verbose": False} if isinstance(tokenizer, PreTrainedTokenizerBase) else {}

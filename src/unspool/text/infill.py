"""Fill in the middle: the prompt of a gap between two texts. Knows the tokens that models were trained with for it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple


class FillTokens(NamedTuple):
    """The texts of the three tokens. They come in this order: before the prefix, the suffix and the middle.

    space: text between the first token and the prefix.
    """

    prefix: str
    suffix: str
    middle: str
    space: str = ""


KNOWN: Final = (
    FillTokens("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),  # Qwen2.5-Coder, CodeGemma
    FillTokens("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),  # StarCoder, Granite
    FillTokens("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),  # SantaCoder
    FillTokens("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),  # DeepSeek-Coder
    FillTokens("▁<PRE>", "▁<SUF>", "▁<MID>", " "),  # CodeLlama
    FillTokens("<|code_prefix|>", "<|code_suffix|>", "<|code_middle|>"),  # GLM-4
)
"""Each model was trained in the order prefix, suffix, middle."""

_ENDS: Final = (
    "▁<EOT>",
    "<|fim_pad|>",
    "<fim_pad>",
    "<|file_sep|>",
    "<file_sep>",
    "<|repo_name|>",
    "<|endoftext|>",
)
"""Further tokens that end a filled gap."""


def fill_tokens(tokenizer: Any) -> FillTokens | None:
    """Return the tokenizer's tokens for filling in the middle; None if it lacks the known ones."""
    vocabulary = _vocabulary(tokenizer)
    return next((known for known in KNOWN if set(known[:3]) <= vocabulary.keys()), None)


def fill_ends(tokenizer: Any, tokens: FillTokens) -> list[int]:
    """Return the ids of tokens that end a filled gap, besides the model's end-of-sequence tokens."""
    vocabulary = _vocabulary(tokenizer)
    return [vocabulary[text] for text in dict.fromkeys((*tokens[:3], *_ENDS)) if text in vocabulary]


def fill_prompt(
    tokenizer: Any, tokens: FillTokens, prefix: str | list[int], suffix: str, *, add_special_tokens: bool = True
) -> list[int]:
    """Return the prompt of the text between `prefix` and `suffix`, as token ids.

    Args:
        prefix: text, or token ids, which are used as they are.
        add_special_tokens: False if the tokenizer must not add its own, such as a begin-of-sequence token, to a text.
    """
    if isinstance(prefix, str):
        begin = tokenizer(f"{tokens.prefix}{tokens.space}{prefix}", add_special_tokens=add_special_tokens)["input_ids"]
    else:
        begin = [_vocabulary(tokenizer)[tokens.prefix], *prefix]
    rest = tokenizer(f"{tokens.suffix}{suffix}{tokens.middle}", add_special_tokens=False)["input_ids"]
    return [*begin, *rest]


def _vocabulary(tokenizer: Any) -> dict[str, int]:
    """Return token --> id; empty for a tokenizer that cannot list its tokens."""
    get = getattr(tokenizer, "get_vocab", None)
    found: dict[str, int] = {} if get is None else get()
    return found

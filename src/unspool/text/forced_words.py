"""Forced words that are given as text: which token sequences stand for each.

Owns: encoding them and seeing that each encoding reads as the text. Does not know: how outputs are made to hold them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from unspool.errors import OptionError

TokenIds: TypeAlias = tuple[int, ...]


def forced_word_ids(words: Sequence[str | tuple[str, ...]], tokenizer: Any) -> tuple[tuple[TokenIds, ...], ...]:
    """Return `force_words` in the form of `force_words_ids`: for each word the token sequences that may stand for it.

    A text stands for its encodings with and without a space in front, without special tokens: "king" for the tokens
    of "king" and of " king". It counts wherever it occurs, so "art" is also met within "part" where the tokens fall so.

    Args:
        words: texts, or tuples of alternative texts.
        tokenizer: anything callable as `tokenizer(text, add_special_tokens=False)["input_ids"]` with a `decode`.

    Raises:
        OptionError: a text has no tokens, or none that read as the text.
    """
    return tuple(_word_ids((word,) if isinstance(word, str) else word, tokenizer) for word in words)


def _word_ids(texts: Sequence[str], tokenizer: Any) -> tuple[TokenIds, ...]:
    found = sorted({ids for text in texts for ids in _encodings(text, tokenizer)}, key=lambda ids: (len(ids), ids))
    # A sequence that holds a shorter alternative is met only after it, so it adds nothing.
    return tuple(ids for index, ids in enumerate(found) if not any(_holds(ids, other) for other in found[:index]))


def _encodings(text: str, tokenizer: Any) -> list[TokenIds]:
    """Return the encodings of a text that read as the text."""
    encoded = [_encode(text, tokenizer), _encode(f" {text}", tokenizer)]
    # Tokenizers that put a space in front by themselves put none behind a newline.
    newline, behind_newline = _encode("\n", tokenizer), _encode(f"\n{text}", tokenizer)
    if behind_newline[: len(newline)] == newline:
        encoded.append(behind_newline[len(newline) :])
    if not any(encoded):
        raise OptionError("force_words", text, "must hold texts that have tokens", "leave this one out")
    fitting = [ids for ids in encoded if ids and _reads_as(ids, text, tokenizer)]
    if not fitting:
        read_back = _decode(encoded[0], tokenizer)
        allowed = f"must hold texts that the model can write (its tokenizer makes {read_back!r} of it)"
        hint = "use characters and letter case that the tokenizer knows, or give `force_words_ids`"
        raise OptionError("force_words", text, allowed, hint)
    return fitting


def _encode(text: str, tokenizer: Any) -> TokenIds:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(ids: TokenIds, tokenizer: Any) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _reads_as(ids: TokenIds, text: str, tokenizer: Any) -> bool:
    """Return whether the text is part of what the tokens add to other text, which may be more than they are alone."""
    once, twice = _decode(ids, tokenizer), _decode(ids + ids, tokenizer)
    return text in (twice[len(once) :] if twice.startswith(once) else once)


def _holds(ids: TokenIds, part: TokenIds) -> bool:
    return any(ids[begin : begin + len(part)] == part for begin in range(len(ids) - len(part) + 1))

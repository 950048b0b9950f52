"""Forced words given as text: the token sequences that spell each word.

Owns: the encodings, and the check that each decodes to the text. Does not know: constrained beam search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

from unspool.errors import OptionError

TokenIds: TypeAlias = tuple[int, ...]


def forced_word_ids(words: Sequence[str | tuple[str, ...]], tokenizer: Any) -> tuple[tuple[TokenIds, ...], ...]:
    """Return `force_words` in the form of `force_words_ids`: per word, the alternative token sequences.

    The alternatives of a text are its encodings with and without a leading space, without special tokens: "king" gives
    the tokens of "king" and of " king". A word also counts inside another word, such as "art" in "part", if the tokens
    match.

    Args:
        words: texts, or tuples of alternative texts.
        tokenizer: any callable with `tokenizer(text, add_special_tokens=False)["input_ids"]` and `decode`.

    Raises:
        OptionError: if a text encodes to zero tokens, or if its tokens do not decode to the text.
    """
    return tuple(_word_ids((word,) if isinstance(word, str) else word, tokenizer) for word in words)


def _word_ids(texts: Sequence[str], tokenizer: Any) -> tuple[TokenIds, ...]:
    found = sorted({ids for text in texts for ids in _encodings(text, tokenizer)}, key=lambda ids: (len(ids), ids))
    # A sequence that contains a shorter alternative is redundant: the shorter one is met first.
    return tuple(ids for index, ids in enumerate(found) if not any(_holds(ids, other) for other in found[:index]))


def _encodings(text: str, tokenizer: Any) -> list[TokenIds]:
    """Return the encodings of a text that decode to the text."""
    encoded = [_encode(text, tokenizer), _encode(f" {text}", tokenizer)]
    # Tokenizers that add a leading space do not add it after a newline.
    newline, behind_newline = _encode("\n", tokenizer), _encode(f"\n{text}", tokenizer)
    if behind_newline[: len(newline)] == newline:
        encoded.append(behind_newline[len(newline) :])
    if not any(encoded):
        raise OptionError("force_words", text, "must contain texts with at least one token", "leave this one out")
    fitting = [ids for ids in encoded if ids and _reads_as(ids, text, tokenizer)]
    if not fitting:
        read_back = _decode(encoded[0], tokenizer)
        allowed = f"must contain texts that the tokenizer can encode (it turns this one into {read_back!r})"
        hint = "use characters and letter case that the tokenizer supports, or give `force_words_ids`"
        raise OptionError("force_words", text, allowed, hint)
    return fitting


def _encode(text: str, tokenizer: Any) -> TokenIds:
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def _decode(ids: TokenIds, tokenizer: Any) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))


def _reads_as(ids: TokenIds, text: str, tokenizer: Any) -> bool:
    """Return True if the text is part of the text that the tokens add after other text."""
    once, twice = _decode(ids, tokenizer), _decode(ids + ids, tokenizer)
    return text in (twice[len(once) :] if twice.startswith(once) else once)


def _holds(ids: TokenIds, part: TokenIds) -> bool:
    return any(ids[begin : begin + len(part)] == part for begin in range(len(ids) - len(part) + 1))

"""Token labels: a readable text for a single token.

Owns: the text of one token by itself, including tokens with part of a character. Does not know: distributions, drawing.
"""

from __future__ import annotations

import re
from typing import Any, Final

from unspool.text.detokenize import REPLACEMENT


def token_label(tokenizer: Any, token: int) -> str:
    """Return the token's text after other text, so a leading space is visible; special tokens give their name.

    Part of a character is written byte by byte, as in "<0xF0><0x9F>". A token without text is written as "<id 17>".

    Args:
        tokenizer: any object with `decode(ids, skip_special_tokens=...)`; its `convert_ids_to_tokens` or `id_to_token`
            is used if present. None if the model lacks a tokenizer.
    """
    if tokenizer is None:
        return f"<id {token}>"
    once = tokenizer.decode([token], skip_special_tokens=False)
    twice = tokenizer.decode([token, token], skip_special_tokens=False)
    text: str = twice[len(once) :] if twice.startswith(once) else once
    if text and REPLACEMENT not in text:
        return text
    name = _name(tokenizer, token)
    return _from_bytes(name) or name or text or f"<id {token}>"


def token_bytes(tokenizer: Any, token: int) -> bytes:
    """Return the UTF-8 bytes that a token adds after other text; part of a character for some tokens.

    Args:
        tokenizer: as in `token_label`; must not be None.
    """
    name = _name(tokenizer, token) or ""
    if name and all(letter in _BYTES for letter in name):
        label = token_label(tokenizer, token)
        raw = bytes(_BYTES[letter] for letter in name)
        return raw if "<0x" in label or label.encode() == raw else label.encode()
    if _FALLBACK.fullmatch(name):
        return bytes([int(name[3:5], 16)])
    return token_label(tokenizer, token).encode()


def _name(tokenizer: Any, token: int) -> str | None:
    for method in ("convert_ids_to_tokens", "id_to_token"):
        if hasattr(tokenizer, method):
            name: str | None = getattr(tokenizer, method)(token)
            return name
    return None


def _from_bytes(name: str | None) -> str | None:
    """Decode a token of a byte-level vocabulary; None if a letter does not represent a byte."""
    if not name or not all(letter in _BYTES for letter in name):
        return None
    raw = bytes(_BYTES[letter] for letter in name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in raw)


_FALLBACK: Final = re.compile("<0x[0-9A-Fa-f]{2}>")
"""Tokens of vocabularies with byte fallback that stand for one byte."""


def _byte_letters() -> dict[str, int]:
    """Return the byte of each letter of a byte-level vocabulary.

    Visible Latin-1 letters represent themselves. The letters from U+0100 on represent the other bytes, in order.
    Source: Radford et al. 2019, GPT-2's encoder.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_letters()

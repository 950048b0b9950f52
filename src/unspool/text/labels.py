"""A single token for people to read.

Owns: the text of one token by itself, also where it is no whole character. Does not know: distributions, drawing.
"""

from __future__ import annotations

from typing import Any

from unspool.text.detokenize import REPLACEMENT


def token_label(tokenizer: Any, token: int) -> str:
    """Return the token's text as it stands behind other text, so a leading space shows; special tokens by name.

    Part of a character is written byte by byte, as in "<0xF0><0x9F>"; a token without any text as "<id 17>".

    Args:
        tokenizer: anything with `decode(ids, skip_special_tokens=...)`; `convert_ids_to_tokens` or `id_to_token` is
            used where it has one; None where the model has no tokenizer.
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


def _name(tokenizer: Any, token: int) -> str | None:
    for method in ("convert_ids_to_tokens", "id_to_token"):
        if hasattr(tokenizer, method):
            name: str | None = getattr(tokenizer, method)(token)
            return name
    return None


def _from_bytes(name: str | None) -> str | None:
    """Read a token of a byte-level vocabulary; None where a letter of it stands for no byte."""
    if not name or not all(letter in _BYTES for letter in name):
        return None
    raw = bytes(_BYTES[letter] for letter in name)
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "".join(chr(byte) if 32 <= byte < 127 else f"<0x{byte:02X}>" for byte in raw)


def _byte_letters() -> dict[str, int]:
    """Return which byte each letter of a byte-level vocabulary stands for.

    Visible Latin-1 letters stand for themselves, the other bytes for the letters from U+0100 on, in order.
    Source: Radford et al. 2019, GPT-2's encoder.
    """
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(0x100) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + i): byte for i, byte in enumerate(hidden)}


_BYTES = _byte_letters()

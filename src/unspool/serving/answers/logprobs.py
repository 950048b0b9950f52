"""Log-probabilities in OpenAI's two shapes. Knows token ids and numbers, no requests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from unspool.results.generation import TopLogprob
from unspool.text.detokenize import Detokenizer
from unspool.text.labels import token_bytes, token_label

MINUS_INFINITY: Final = -9999.0
"""Stands for a log-probability of minus infinity, which JSON lacks."""


class Scored(NamedTuple):
    """A token with its log-probability under the model, and the most probable tokens at its position."""

    token: int
    logprob: float | None
    top: Sequence[TopLogprob] = ()


def scored(
    tokens: Iterable[int], logprobs: Iterable[float | None], tops: Sequence[Sequence[TopLogprob] | None] | None
) -> list[Scored]:
    """Return tokens with their figures; `tops` is None without alternatives."""
    rows = list(zip(tokens, logprobs, strict=True))
    return [Scored(token, logprob, (tops[at] or ()) if tops else ()) for at, (token, logprob) in enumerate(rows)]


class TokenTexts:
    """Texts and bytes of single tokens, for answers. Caches them.

    Args:
        tokenizer: None if the model lacks one; tokens are then named by their ids.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._texts: dict[int, str] = {}
        self._bytes: dict[int, bytes] = {}

    def raw(self, token: int) -> bytes:
        """Return the bytes that the token adds."""
        if token not in self._bytes:
            text = self._tokenizer is None
            self._bytes[token] = f"token_id:{token}".encode() if text else token_bytes(self._tokenizer, token)
        return self._bytes[token]

    def text(self, token: int, *, as_id: bool = False) -> str:
        """Return the token's text; `bytes:` and its bytes if it is part of a character; `token_id:N` if asked."""
        if as_id or self._tokenizer is None:
            return f"token_id:{token}"
        if token not in self._texts:
            raw = self.raw(token)
            try:
                raw.decode()
                self._texts[token] = token_label(self._tokenizer, token)
            except UnicodeDecodeError:
                self._texts[token] = "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
        return self._texts[token]


class CompletionLogprobs:
    """The `logprobs` object of the completions route, for one output, piece by piece.

    Args:
        texts: of the tokens.
        detokenizer: for the offsets; None without a tokenizer.
        prompt_ids: of the output's prompt.
        num_top: number of alternatives per token.
        as_ids: True to name tokens by their ids.
        echo: True if the text begins with the prompt.

    Attributes:
        has_begun: True after the first call of `add`.
    """

    def __init__(
        self,
        texts: TokenTexts,
        detokenizer: Detokenizer | None,
        prompt_ids: Sequence[int],
        *,
        num_top: int,
        as_ids: bool = False,
        echo: bool = False,
    ) -> None:
        self._texts, self._detokenizer, self._num_top, self._as_ids = texts, detokenizer, num_top, as_ids
        self._offset = 0
        self.has_begun = False
        self._state = None if detokenizer is None else detokenizer.start(() if echo else prompt_ids)

    def add(self, rows: Sequence[Scored], *, end: int | None = None) -> dict[str, Any]:
        """Return the object for the next tokens of the output.

        Args:
            end: length of the choice's whole text, if it is known; no offset exceeds it.
        """
        self.has_begun = True
        offsets = [self._advance(row.token) for row in rows]
        return {
            "tokens": [self._name(row.token) for row in rows],
            "token_logprobs": [finite(row.logprob) for row in rows],
            "top_logprobs": [self._top(row) for row in rows] if self._num_top else None,
            "text_offset": offsets if end is None else [min(offset, end) for offset in offsets],
        }

    def _advance(self, token: int) -> int:
        """Return the offset of the token's text in the choice's text."""
        before = self._offset
        if self._detokenizer is not None and self._state is not None:
            self._state, text = self._detokenizer.advance(self._state, token)
            self._offset += len(text)
        return before

    def _name(self, token: int) -> str:
        return self._texts.text(token, as_id=self._as_ids)

    def _top(self, row: Scored) -> dict[str, float | None] | None:
        """Return alternatives by text; the token itself is added if it is not among them.

        If several tokens have one text, it names the chosen token, or else the most probable one.
        """
        if row.logprob is None:
            return None
        own, top = self._name(row.token), row.top[: self._num_top]
        best: dict[str, float | None] = {}
        for each in top:
            name = self._name(each.token_id)
            if each.token_id != row.token and (name == own or name in best):
                name = f"token_id:{each.token_id}"
            best[name] = finite(each.logprob)
        if all(each.token_id != row.token for each in top):
            best[own] = finite(row.logprob)
        return best


def chat_logprobs(
    rows: Iterable[Scored], texts: TokenTexts, *, num_top: int, as_ids: bool = False
) -> dict[str, list[dict[str, Any]] | None]:
    """Return the `logprobs` object of the chat route for some tokens of an output."""

    def entry(token: int, logprob: float | None) -> dict[str, Any]:
        return {
            "token": texts.text(token, as_id=as_ids),
            "logprob": finite(logprob),
            "bytes": list(texts.raw(token)),
        }

    content = [
        {
            **entry(row.token, row.logprob),
            "top_logprobs": [entry(each.token_id, each.logprob) for each in row.top[:num_top]],
        }
        for row in rows
    ]
    return {"content": content, "refusal": None}


def finite(value: float | None) -> float | None:
    """Return a log-probability as JSON can hold it; None stays None."""
    return value if value is None or math.isfinite(value) else MINUS_INFINITY

"""Streaming detokenizer: token ids to text, one token at a time.

Owns: the detokenizer and its state, an immutable value, so a fork is free. Emitted text is final: it contains only
whole characters that later tokens cannot change. Does not know: stop strings, requests, streams.

The text of an output is the text that its tokens add to the prompt, so `prompt + text` is correct. Therefore the
prompt's last tokens are decoded together with the first new tokens, which keeps a leading space.

    state          [ context | pending ]           ids; at most MAX_CONTEXT and MAX_PENDING of them
    emitted        before = decode(context), then `out` = the final part of pending's text
    held back      decode(context + pending) - before - out
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

REPLACEMENT: Final = "\ufffd"
MIN_CONTEXT: Final = 4
MAX_CONTEXT: Final = 12
# A character has at most four bytes and a token at least one, so a character is complete after three more tokens. The
# limit leaves room for tokens without text in between.
MAX_PENDING: Final = 6
_KEPT_PENDING: Final = 3

# The suffix of a word piece that the next token continues (CTRL); it disappears if a token follows.
_CONTINUATION: Final = "@@"
# Text ends that `clean_up_tokenization_spaces` can still contract, to " .", " ' ", " n't", " 've" or " 're".
_CLEANED: Final = (" n '", " n'", " 'v", " 'r", " '", " n", " ")


class Tokenizer(Protocol):
    """The required method of a tokenizer; tokenizers of transformers and of the tokenizers library have it."""

    def decode(self, ids: list[int], /, *, skip_special_tokens: bool) -> Any:
        """Return the text of the ids."""
        ...


class DetokenizerState(NamedTuple):
    """The detokenizer's state in one output.

    context: ids with completely emitted text, or of the prompt. before: their text.
    pending: ids with text that is not completely emitted. out: the emitted part of it.
    """

    context: tuple[int, ...]
    pending: tuple[int, ...]
    before: str
    out: str


class Detokenizer:
    """Turns token ids into text piece by piece; immutable, and shared by all outputs of a model.

    A step decodes at most MAX_CONTEXT + MAX_PENDING + 1 ids, for an output of any length.

    Args:
        tokenizer: any object with `decode(ids, skip_special_tokens=...)`.
        skip_special_tokens: True to leave special tokens, such as the end of sequence, out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._tails = _CLEANED if cleans else ()
        self._additive = not cleans and _is_byte_level(tokenizer)
        # Caches of facts about single tokens; the facts are constant, so sharing them is safe.
        self._skipped: dict[int, bool] = {}
        self._hidden: dict[int, str] = {}
        self._forms: dict[int, tuple[str, ...]] = {}

    def decode(self, ids: Iterable[int]) -> str:
        """Return the tokenizer's own text of the ids."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=self.skip_special_tokens)
        return text

    def start(self, prompt_ids: Sequence[int]) -> DetokenizerState:
        """Return the state after the prompt; reads only the prompt's last tokens with text."""
        tail: list[int] = []
        for token in reversed(prompt_ids):
            if not self.skips(token):
                tail.append(token)
            if len(tail) > MAX_CONTEXT:
                break
        return self._settle(tuple(reversed(tail)))

    def advance(self, state: DetokenizerState, token: int) -> tuple[DetokenizerState, str]:
        """Return the state after one more token, and the text that is final now; often "" inside a character."""
        if self._additive and not state.pending:
            forms = self.forms(token)
            if forms and forms[0]:
                return DetokenizerState((token,), (), forms[0], ""), forms[0]
        pending = (*state.pending, token)
        text, before, new = self._read(state, pending)
        if (state.pending or not new) and self.skips(token):
            return state, ""
        ready = self.certain(new, token)
        if new and ready == new:
            return self._settle(state.context + pending, text), ready
        held = DetokenizerState(state.context, pending, before, state.out + ready)
        if len(pending) <= MAX_PENDING:
            return held, ready
        held, forced = self._release(held)
        return held, ready + forced

    def flush(self, state: DetokenizerState) -> str:
        """Return the text held back, for an output that ends here; incomplete characters become U+FFFD."""
        return self._read(state, state.pending)[2] if state.pending else ""

    def pieces(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> tuple[str, ...]:
        """Return the text emitted with each token; joined, the pieces are the whole text.

        A character of several tokens belongs to the piece of its last token. Flushed text belongs to the last piece.
        """
        state, pieces = self.start(prompt_ids), []
        for token in token_ids:
            state, text = self.advance(state, token)
            pieces.append(text)
        if pieces:
            pieces[-1] += self.flush(state)
        return tuple(pieces)

    def certain(self, text: str, last: int) -> str:
        """Return `text`, which ends with the token `last`, without an end that later tokens can change."""
        text = text.rstrip(REPLACEMENT)
        for tail in self._tails:
            if text.endswith(tail):
                return text[: -len(tail)]
        if text.endswith(_CONTINUATION) and self._continues(last):
            return text[: -len(_CONTINUATION)]
        return text

    def skips(self, token: int) -> bool:
        """Return True if the token is a special token that the text leaves out."""
        if not self.skip_special_tokens:
            return False
        known = self._skipped.get(token)
        if known is None:
            shown = self.tokenizer.decode([token], skip_special_tokens=False)
            known = self._skipped[token] = bool(shown) and not self.decode([token])
        return known

    def hidden(self, token: int) -> str:
        """Return the text of a special token that the text leaves out; "" for every other token.

        It is the token's text after other text, as in "a [SEP]".
        """
        if not self.skips(token):
            return ""
        known = self._hidden.get(token)
        if known is None:
            once, twice = (self.tokenizer.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
            known = self._hidden[token] = twice[len(once) :] if twice.startswith(once) else once
        return known

    def forms(self, token: int) -> tuple[str, ...]:
        """Return the two texts that the token can add without pending tokens: at the start, and after other text.

        Empty if the text depends on other tokens: the token is part of a character, or its end can change.
        """
        known = self._forms.get(token)
        if known is None:
            first, twice = self.decode([token]), self.decode([token, token])
            fixed = twice.startswith(first) and REPLACEMENT not in twice
            forms = (first, twice[len(first) :])
            fixed = fixed and all(self.certain(form, token) == form for form in forms)
            known = self._forms[token] = forms if fixed else ()
        return known

    def _continues(self, token: int) -> bool:
        return not self.decode([token, token]).startswith(self.decode([token]))

    def _read(self, state: DetokenizerState, pending: tuple[int, ...]) -> tuple[str, str, str]:
        """Return the text of the whole window, the present text of its context, and the text not yet emitted."""
        text = self.decode(state.context + pending)
        if text.startswith(state.before + state.out):
            return text, state.before, text[len(state.before) + len(state.out) :]
        base = self.certain(state.before, (state.context or pending)[-1])
        if text.startswith(base + state.out):  # the prompt ended inside a character that is complete now
            return text, base, text[len(base) + len(state.out) :]
        # With byte fallback, one invalid byte makes the decoder rewrite a whole run of emitted text. Emitted text is
        # final, so decode the pending tokens by themselves.
        alone = self.decode(pending)
        return text, state.before, alone.removeprefix(state.out)

    def _settle(self, ids: tuple[int, ...], text: str | None = None) -> DetokenizerState:
        """Return the state after all text of `ids` is emitted, with a context of at most MAX_CONTEXT ids."""
        if len(ids) <= MAX_CONTEXT:
            return DetokenizerState(ids, (), self.decode(ids) if text is None else text, "")
        cuts = []
        for size in range(MIN_CONTEXT, MAX_CONTEXT + 1):
            before = self.decode(ids[-size:])
            if before and not before.startswith(REPLACEMENT):  # not cut inside a character
                return DetokenizerState(ids[-size:], (), before, "")
            cuts.append((before.count(REPLACEMENT) / size, size, before))
        _, size, before = min(cuts)
        return DetokenizerState(ids[-size:], (), before, "")

    def _release(self, state: DetokenizerState) -> tuple[DetokenizerState, str]:
        """Emit the oldest pending tokens: a valid character would be complete by now."""
        size = self._border(state.pending[:-_KEPT_PENDING])
        moved, rest = state.pending[:size], state.pending[size:]
        context, shown = state.context + moved, state.before + state.out
        text = self.decode(context)
        if text == state.before:  # drop tokens without text, so that they do not fill the context
            return state._replace(pending=rest), ""
        if shown.startswith(text):
            return self._settle(context, text)._replace(pending=rest, out=shown[len(text) :]), ""
        forced = text[len(shown) :] if text.startswith(shown) else self.decode(moved).removeprefix(state.out)
        return self._settle(context, text)._replace(pending=rest), forced

    def _border(self, ids: tuple[int, ...]) -> int:
        """Return the number of `ids` to emit that does not split a character, such as U+FFFD with its three bytes."""

        def share_lost(size: int) -> tuple[float, int]:
            return self.decode(ids[:size]).count(REPLACEMENT) / size, -size

        return min(range(1, len(ids) + 1), key=share_lost)


def _is_byte_level(tokenizer: Any) -> bool:
    """Return True if a text is the concatenation of its tokens' bytes, so whole characters can be appended."""
    library = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return type(getattr(library, "decoder", None)).__name__ == "ByteLevel"

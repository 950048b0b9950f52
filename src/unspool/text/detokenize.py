"""Token ids to text, one token at a time.

Owns: the detokenizer and its state, a value that forks for free. Text handed out is never taken back: it holds whole
characters, and nothing that the tokens to come may still change. Does not know: stop strings, requests, streams.

The text of an output is what its tokens add to the text of the prompt, so `prompt + text` reads right: the prompt's
last tokens are decoded along with the first new ones, and a leading space survives.

    state          [ context | pending ]           ids; at most MAX_CONTEXT and MAX_PENDING of them
    handed out     before = decode(context), then `out` = the part of pending's text that is certain
    held back      decode(context + pending) - before - out
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple, Protocol

REPLACEMENT: Final = "\ufffd"
MIN_CONTEXT: Final = 4
MAX_CONTEXT: Final = 12
# A character is four bytes and a token at least one, so a character waits for three tokens more at the longest. The
# limit leaves room for tokens without text in between.
MAX_PENDING: Final = 6
_KEPT_PENDING: Final = 3

# Ends a piece that the next token continues (CTRL): it vanishes then, and stands if nothing follows.
_CONTINUATION: Final = "@@"
# What `clean_up_tokenization_spaces` may still contract, once more of " .", " ' ", " n't", " 've" or " 're" has come.
_CLEANED: Final = (" n '", " n'", " 'v", " 'r", " '", " n", " ")


class Tokenizer(Protocol):
    """All that is asked of a tokenizer; those of transformers and of the tokenizers library have it."""

    def decode(self, ids: list[int], /, *, skip_special_tokens: bool) -> Any:
        """Return the text of the ids."""
        ...


class DetokenizerState(NamedTuple):
    """Where the detokenizer stands in one output.

    context: ids whose text is out, or belongs to the prompt. before: their text. pending: ids whose text is not out
    yet, or not all of it. out: what is.
    """

    context: tuple[int, ...]
    pending: tuple[int, ...]
    before: str
    out: str


class Detokenizer:
    """Turns token ids into text piece by piece; immutable, and shared by all outputs of a model.

    A step decodes at most MAX_CONTEXT + MAX_PENDING + 1 ids, however long the output is.

    Args:
        tokenizer: anything with `decode(ids, skip_special_tokens=...)`.
        skip_special_tokens: leave tokens such as the end of sequence out of the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special_tokens: bool = True) -> None:
        self.tokenizer = tokenizer
        self.skip_special_tokens = skip_special_tokens
        cleans = bool(getattr(tokenizer, "clean_up_tokenization_spaces", False))
        self._tails = _CLEANED if cleans else ()
        self._additive = not cleans and _is_byte_level(tokenizer)
        # What a token is by itself never changes, so these only ever fill up, and sharing them is safe.
        self._skipped: dict[int, bool] = {}
        self._hidden: dict[int, str] = {}
        self._forms: dict[int, tuple[str, ...]] = {}

    def decode(self, ids: Iterable[int]) -> str:
        """Return the tokenizer's own text of the ids."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=self.skip_special_tokens)
        return text

    def start(self, prompt_ids: Sequence[int]) -> DetokenizerState:
        """Return the state after the prompt, of which only the last tokens with text are read."""
        tail: list[int] = []
        for token in reversed(prompt_ids):
            if not self.skips(token):
                tail.append(token)
            if len(tail) > MAX_CONTEXT:
                break
        return self._settle(tuple(reversed(tail)))

    def advance(self, state: DetokenizerState, token: int) -> tuple[DetokenizerState, str]:
        """Return the state after one more token, and the text that is certain now; often "" inside a character."""
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
        """Return what was held back, for an output that ends here; unfinished characters come out as U+FFFD."""
        return self._read(state, state.pending)[2] if state.pending else ""

    def pieces(self, prompt_ids: Sequence[int], token_ids: Sequence[int]) -> tuple[str, ...]:
        """Return the text that came out with each token; joined, they are the whole text.

        A character made of several tokens stands with the last of them, what is flushed with the last token.
        """
        state, pieces = self.start(prompt_ids), []
        for token in token_ids:
            state, text = self.advance(state, token)
            pieces.append(text)
        if pieces:
            pieces[-1] += self.flush(state)
        return tuple(pieces)

    def certain(self, text: str, last: int) -> str:
        """Return `text`, which ends with the token `last`, without the end that tokens to come may still change."""
        text = text.rstrip(REPLACEMENT)
        for tail in self._tails:
            if text.endswith(tail):
                return text[: -len(tail)]
        if text.endswith(_CONTINUATION) and self._continues(last):
            return text[: -len(_CONTINUATION)]
        return text

    def skips(self, token: int) -> bool:
        """Return whether the token is a special one that is left out of the text."""
        if not self.skip_special_tokens:
            return False
        known = self._skipped.get(token)
        if known is None:
            shown = self.tokenizer.decode([token], skip_special_tokens=False)
            known = self._skipped[token] = bool(shown) and not self.decode([token])
        return known

    def hidden(self, token: int) -> str:
        """Return the text of a special token that is left out of the text; "" for every other token.

        It is the text that the token has behind other text, as in "a [SEP]".
        """
        if not self.skips(token):
            return ""
        known = self._hidden.get(token)
        if known is None:
            once, twice = (self.tokenizer.decode([token] * count, skip_special_tokens=False) for count in (1, 2))
            known = self._hidden[token] = twice[len(once) :] if twice.startswith(once) else once
        return known

    def forms(self, token: int) -> tuple[str, ...]:
        """Return the texts the token may add where nothing is pending: at the start of a text, and after other text.

        Empty where that cannot be told from the token alone: it holds part of a character, or its end may change.
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
        """Return the text of the whole window, the text of its context as it now is, and what is not out yet."""
        text = self.decode(state.context + pending)
        if text.startswith(state.before + state.out):
            return text, state.before, text[len(state.before) + len(state.out) :]
        base = self.certain(state.before, (state.context or pending)[-1])
        if text.startswith(base + state.out):  # the prompt ended inside a character, which is whole now
            return text, base, text[len(base) + len(state.out) :]
        # The decoder rewrote text that is out: one bad byte spoils a whole run of good ones where bytes are tokens
        # (byte fallback). What is out stays out; the pending tokens are read by themselves.
        alone = self.decode(pending)
        return text, state.before, alone.removeprefix(state.out)

    def _settle(self, ids: tuple[int, ...], text: str | None = None) -> DetokenizerState:
        """Return the state where all text of `ids` is out, with a context that is cut where it has grown too long."""
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
        """Let go of the oldest pending tokens: a character would be whole by now."""
        size = self._border(state.pending[:-_KEPT_PENDING])
        moved, rest = state.pending[:size], state.pending[size:]
        context, shown = state.context + moved, state.before + state.out
        text = self.decode(context)
        if text == state.before:  # tokens without text, which would crowd the context out
            return state._replace(pending=rest), ""
        if shown.startswith(text):
            return self._settle(context, text)._replace(pending=rest, out=shown[len(text) :]), ""
        forced = text[len(shown) :] if text.startswith(shown) else self.decode(moved).removeprefix(state.out)
        return self._settle(context, text)._replace(pending=rest), forced

    def _border(self, ids: tuple[int, ...]) -> int:
        """Return how many of `ids` to let go, so that U+FFFD itself, a character of three bytes, is not cut in two."""

        def share_lost(size: int) -> tuple[float, int]:
            return self.decode(ids[:size]).count(REPLACEMENT) / size, -size

        return min(range(1, len(ids) + 1), key=share_lost)


def _is_byte_level(tokenizer: Any) -> bool:
    """Return whether texts are the bytes of the tokens, one after the other, so that whole characters just add up."""
    library = getattr(tokenizer, "backend_tokenizer", tokenizer)
    return type(getattr(library, "decoder", None)).__name__ == "ByteLevel"

"""Text emission: the committed tokens of one output to the visible text.

Owns: the only path from tokens to text, streamed or at once. Does not know: the engine's events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unspool.text.detokenize import REPLACEMENT, Detokenizer, DetokenizerState
from unspool.text.stops import HoldBack


class TextEmitter:
    """Emits the text of one output piece by piece; text from `push` and `finish` is final.

    Args:
        detokenizer: the model's detokenizer.
        prompt_ids: the prompt's token ids, used only as context.
        stops: the request's stop strings; () for none.
        special: True to show special tokens, at their places.
    """

    def __init__(
        self, detokenizer: Detokenizer, prompt_ids: Sequence[int], *, stops: tuple[str, ...] = (), special: bool = False
    ) -> None:
        self._detokenizer, self._special = detokenizer, special
        self._state = detokenizer.start(prompt_ids)
        self._hold = HoldBack(stops)

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that is final after these tokens and cannot belong to a stop string; often ""."""
        self._state, self._hold, shown = self._after(token_ids)
        return shown

    def tentative(self, token_ids: Iterable[int]) -> str:
        """Return the text that these tokens would add, without a change of state.

        The text held back comes first. The result ends before a stop string, and contains only whole characters.
        """
        state, hold, shown = self._after(token_ids)
        hold, last = hold.push(self._detokenizer.flush(state))
        text = shown + last + hold.finish(stopped=True)
        return text if hold.matched else text.rstrip(REPLACEMENT)

    def _after(self, token_ids: Iterable[int]) -> tuple[DetokenizerState, HoldBack, str]:
        """Return both states after these tokens, and the text to emit."""
        state, hold, pieces = self._state, self._hold, []
        for token in token_ids:
            state, text = self._detokenizer.advance(state, token)
            hidden = self._detokenizer.hidden(token) if hold.stops or self._special else ""
            hold, shown = hold.push(text + hidden) if self._special else hold.push(text, hidden)
            pieces.append(shown)
        return state, hold, "".join(pieces)

    def finish(self, finish_reason: str) -> str:
        """Return the last text of the output.

        Args:
            finish_reason: "stop" cuts the text before the stop string; any other reason emits all text held back.
        """
        hold, shown = self._hold.push(self._detokenizer.flush(self._state))
        return shown + hold.finish(stopped=finish_reason == "stop")


def text_of(
    detokenizer: Detokenizer,
    prompt_ids: Sequence[int],
    *,
    token_ids: Iterable[int],
    finish_reason: str,
    stops: tuple[str, ...] = (),
    special: bool = False,
) -> str:
    """Return the text of a finished output: all pieces that a `TextEmitter` emits for the same tokens, joined."""
    emitter = TextEmitter(detokenizer, prompt_ids, stops=stops, special=special)
    return emitter.push(token_ids) + emitter.finish(finish_reason)

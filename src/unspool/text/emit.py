"""From the committed tokens of one output to the text that is shown.

Owns: the one path by which tokens become text, streamed or at once. Does not know: the engine's events.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unspool.text.detokenize import REPLACEMENT, Detokenizer, DetokenizerState
from unspool.text.stops import HoldBack


class TextEmitter:
    """The text of one output, piece by piece; what `push` and `finish` return is never taken back.

    Args:
        detokenizer: of the model.
        prompt_ids: the prompt's token ids, read as context alone.
        stops: the request's stop strings; () for none.
    """

    def __init__(self, detokenizer: Detokenizer, prompt_ids: Sequence[int], *, stops: tuple[str, ...] = ()) -> None:
        self._detokenizer = detokenizer
        self._state = detokenizer.start(prompt_ids)
        self._hold = HoldBack(stops)

    def push(self, token_ids: Iterable[int]) -> str:
        """Return the text that is certain after these tokens and cannot belong to a stop string; often ""."""
        self._state, self._hold, shown = self._after(token_ids)
        return shown

    def tentative(self, token_ids: Iterable[int]) -> str:
        """Return the text that these tokens would add if they followed; changes nothing.

        The text that is held back comes first. The result ends before a stop string, and holds no part of a character.
        """
        state, hold, shown = self._after(token_ids)
        hold, last = hold.push(self._detokenizer.flush(state))
        text = shown + last + hold.finish(stopped=True)
        return text if hold.matched else text.rstrip(REPLACEMENT)

    def _after(self, token_ids: Iterable[int]) -> tuple[DetokenizerState, HoldBack, str]:
        """Return both states after these tokens, and the text that they let out."""
        state, hold, pieces = self._state, self._hold, []
        for token in token_ids:
            state, text = self._detokenizer.advance(state, token)
            hold, shown = hold.push(text, self._detokenizer.hidden(token) if hold.stops else "")
            pieces.append(shown)
        return state, hold, "".join(pieces)

    def finish(self, finish_reason: str) -> str:
        """Return the last text of the output.

        Args:
            finish_reason: with "stop" the text is cut before the stop string; with any other it comes out whole.
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
) -> str:
    """Return the text of a finished output: what a `TextEmitter` hands out over the same tokens, joined."""
    emitter = TextEmitter(detokenizer, prompt_ids, stops=stops)
    return emitter.push(token_ids) + emitter.finish(finish_reason)

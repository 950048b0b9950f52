"""Stop strings: the stopping criterion, and the hold-back of streamed text.

Owns: both. Does not know: the callers.

Stop strings are matched against the written text: the visible text plus the text of special tokens at their positions.
So a stop string can contain the text of a special token, and never matches across a special token. The stop string
that is complete first counts; if several end at the same character, the longest counts. The result depends only on the
text, not on its division into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from unspool.errors import OptionError
from unspool.protocols import Criterion
from unspool.text.detokenize import Detokenizer, DetokenizerState

if TYPE_CHECKING:
    from unspool.protocols import Context


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings as a tuple.

    Raises:
        OptionError: if a stop string is not a string, or is empty.
    """
    given = (stops,) if isinstance(stops, str) else tuple(stops)
    for stop in given:
        if not isinstance(stop, str) or not stop:
            raise OptionError("stop_strings", stop, "must hold non-empty strings", "use None for no stop strings")
    return given


def first_stop(text: str, stops: tuple[str, ...], start: int = 0) -> tuple[int, int] | None:
    """Return [begin, end) of the stop string in `text[start:]` that is complete first, or None."""
    best: tuple[int, int] | None = None
    for stop in stops:
        begin = text.find(stop, start)
        if begin >= 0:
            end = begin + len(stop)
            if best is None or (end, begin) < (best[1], best[0]):
                best = (begin, end)
    return best


class StopState(NamedTuple):
    """detokenizer: its state. tail: the end of the written text, one character shorter than the longest stop string."""

    detokenizer: DetokenizerState
    tail: str


class StopStrings(Criterion):
    """Stopping criterion "stop": the written text contains a stop string. States are immutable values.

    Most candidates are ruled out by their token. Text is decoded only if the token can complete a stop string.

    Args:
        stops: one or more non-empty strings.
        detokenizer: the model's detokenizer; can be shared.
        in_prompt: True if a stop string can begin in the prompt. It always ends in the output.

    Raises:
        OptionError: if a stop string is empty or none is given.
    """

    name = "stop"

    def __init__(self, stops: Sequence[str], detokenizer: Detokenizer, *, in_prompt: bool = False) -> None:
        self.stops = check_stops(stops)
        if not self.stops:
            raise OptionError("stop_strings", stops, "must hold at least one string", "use None for no stop strings")
        self._detokenizer = detokenizer
        self._in_prompt = in_prompt
        self._tail_length = max(map(len, self.stops)) - 1
        self._endings = tuple(stop[i:] for stop in self.stops for i in range(1, len(stop)))
        self._may_complete: dict[int, bool] = {}

    def start(self, context: Context) -> StopState:
        """Return the state before the first output token."""
        if not self._in_prompt or not self._tail_length:
            return StopState(self._detokenizer.start(context.prompt), "")
        # Each token has at least one character, as in transformers, so this many can be part of a stop string.
        first = max(0, len(context.prompt) - self._tail_length)
        state = StopState(self._detokenizer.start(context.prompt[:first]), "")
        for token in context.prompt[first:]:
            state = self.advance(state, token)
        return state

    def advance(self, state: StopState, token: int) -> StopState:
        """Return the state after one more token."""
        detokenizer, text = self._detokenizer.advance(state.detokenizer, token)
        return StopState(detokenizer, self._last(state.tail + text + self._detokenizer.hidden(token)))

    def ends(self, state: StopState, token: int) -> bool:
        """Return True if the token completes a stop string."""
        if not state.detokenizer.pending and not self.may_complete(token):
            return False
        visible = self._detokenizer.advance(state.detokenizer, token)[1]
        text = state.tail + visible + self._detokenizer.hidden(token)
        known = len(state.tail)
        return any(text.find(stop, max(0, known - len(stop) + 1)) >= 0 for stop in self.stops)

    def may_complete(self, token: int) -> bool:
        """Return True if the token completes a stop string after some text, or if that is unknown."""
        verdict = self._may_complete.get(token)
        if verdict is None:
            hidden = self._detokenizer.hidden(token)
            forms = (hidden,) if hidden else self._detokenizer.forms(token)
            verdict = not forms or any(self._completes(form) for form in forms)
            self._may_complete[token] = verdict
        return verdict

    def _completes(self, text: str) -> bool:
        return any(stop in text for stop in self.stops) or text.startswith(self._endings)

    def _last(self, text: str) -> str:
        return text[max(0, len(text) - self._tail_length) :]


@dataclass(frozen=True, slots=True)
class HoldBack:
    """The hold-back of streamed text, as an immutable value: text that can belong to a stop string waits.

    Args:
        stops: the stop strings; () holds back no text.
        held: written text that is not emitted.
        shows: one byte per character of `held`: 1 if it is visible, 0 if it belongs to a special token left out.
        matched: True if `held` begins with a whole stop string, so all later text stays held.
    """

    stops: tuple[str, ...]
    held: str = ""
    shows: bytes = b""
    matched: bool = False

    def push(self, text: str, hidden: str = "") -> tuple[HoldBack, str]:
        """Return the value after more text, and the visible text that can no longer belong to a stop string.

        Args:
            text: visible text.
            hidden: the text of a special token after it, left out of the visible text.
        """
        if not self.stops:
            return self, text
        waiting, shows = self.held + text + hidden, self.shows + b"\1" * len(text) + b"\0" * len(hidden)
        if self.matched:
            return HoldBack(self.stops, waiting, shows, True), ""
        match = first_stop(waiting, self.stops)
        cut = len(waiting) - self._overlap(waiting) if match is None else match[0]
        rest = HoldBack(self.stops, waiting[cut:], shows[cut:], match is not None)
        return rest, "".join(compress(waiting[:cut], shows))

    def finish(self, *, stopped: bool) -> str:
        """Return the visible text held back; "" if the output ended with the held stop string."""
        return "" if stopped and self.matched else "".join(compress(self.held, self.shows))

    def _overlap(self, text: str) -> int:
        """Return the length of the longest suffix of `text` that is a proper prefix of a stop string."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

"""Stop strings: when an output ends because of one, and what of its text may be shown until then.

Owns: the criterion the engine asks about candidates, and the hold-back of streamed text. Does not know: who asks.

Only the output's own text counts: a stop string that begins in the prompt is none. Of several stop strings, the one
that is complete first counts, and of those complete at the same character the longest. So the result depends on the
text alone, not on how the text falls into tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from unspool.errors import OptionError
from unspool.text.detokenize import Detokenizer, DetokenizerState

if TYPE_CHECKING:
    from unspool.protocols import Context


def check_stops(stops: Sequence[str]) -> tuple[str, ...]:
    """Return the stop strings as a tuple.

    Raises:
        OptionError: one is not a string, or is empty and would stop everything at once.
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
    """detokenizer: where it stands. tail: the last characters of the output, one fewer than the longest stop string."""

    detokenizer: DetokenizerState
    tail: str


class StopStrings:
    """Stopping criterion "stop": the output's text contains a stop string. States are immutable values.

    Most candidates are dismissed by a look at what is known of the token; text is decoded only where a stop string
    could become complete.

    Args:
        stops: one or more non-empty strings.
        detokenizer: of the model; may be shared.

    Raises:
        OptionError: a stop string is empty or none is given.
    """

    name = "stop"

    def __init__(self, stops: Sequence[str], detokenizer: Detokenizer) -> None:
        self.stops = check_stops(stops)
        if not self.stops:
            raise OptionError("stop_strings", stops, "must hold at least one string", "use None for no stop strings")
        self._detokenizer = detokenizer
        self._tail_length = max(map(len, self.stops)) - 1
        self._endings = tuple(stop[i:] for stop in self.stops for i in range(1, len(stop)))
        self._may_complete: dict[int, bool] = {}

    def start(self, context: Context) -> StopState:
        """Return the state before the first output token."""
        return StopState(self._detokenizer.start(context.prompt), "")

    def advance(self, state: StopState, token: int) -> StopState:
        """Return the state after one more output token."""
        detokenizer, text = self._detokenizer.advance(state.detokenizer, token)
        return StopState(detokenizer, self._last(state.tail + text))

    def ends(self, state: StopState, token: int) -> bool:
        """Return whether a stop string is complete once the token's text stands behind the output's."""
        if not state.detokenizer.pending and not self.may_complete(token):
            return False
        text = state.tail + self._detokenizer.advance(state.detokenizer, token)[1]
        known = len(state.tail)
        return any(text.find(stop, max(0, known - len(stop) + 1)) >= 0 for stop in self.stops)

    def may_complete(self, token: int) -> bool:
        """Return whether there is any text that the token could complete to a stop string; True where unsure."""
        verdict = self._may_complete.get(token)
        if verdict is None:
            forms = self._detokenizer.forms(token)
            verdict = not forms or any(self._completes(form) for form in forms)
            self._may_complete[token] = verdict
        return verdict

    def _completes(self, text: str) -> bool:
        return any(stop in text for stop in self.stops) or text.startswith(self._endings)

    def _last(self, text: str) -> str:
        return text[max(0, len(text) - self._tail_length) :]


@dataclass(frozen=True, slots=True)
class HoldBack:
    """Text on its way out, as a value: what could still be part of a stop string waits.

    Args:
        stops: the stop strings; () lets everything through.
        held: text not yet handed out.
        matched: whether `held` begins with a whole stop string, so that nothing more may pass.
    """

    stops: tuple[str, ...]
    held: str = ""
    matched: bool = False

    def push(self, text: str) -> tuple[HoldBack, str]:
        """Return the value after more text, and the text that no stop string can begin in any more."""
        waiting = self.held + text
        if self.matched:
            return HoldBack(self.stops, waiting, True), ""
        match = first_stop(waiting, self.stops)
        cut = len(waiting) - self._overlap(waiting) if match is None else match[0]
        return HoldBack(self.stops, waiting[cut:], match is not None), waiting[:cut]

    def finish(self, *, stopped: bool) -> str:
        """Return the rest: all that is held, or nothing from the stop string on if that is why the output ended."""
        return "" if stopped and self.matched else self.held

    def _overlap(self, text: str) -> int:
        """Return the length of the longest end of `text` that begins a stop string."""
        longest = 0
        for stop in self.stops:
            for length in range(min(len(stop) - 1, len(text)), longest, -1):
                if text.endswith(stop[:length]):
                    longest = length
                    break
        return longest

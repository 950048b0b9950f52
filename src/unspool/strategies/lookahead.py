"""Early commits for beam search: tokens are final if they have led for `lookahead_steps` steps.

Owns: the leaders of the last steps. Does not know: how beams grow and finish.
"""

from __future__ import annotations

from collections import deque

from unspool.strategies.beams import Choice, FinishedBeams, shared_length


class LookAhead:
    """Decide the tokens that all leaders of the last `steps` steps share, and drop the beams that disagree.

    The leader of a step is the live beam or finished hypothesis with the best score at its present length; a finished
    hypothesis wins ties. The step in which a token appears counts, so steps=1 decides at once. Decided tokens are
    always a prefix of the best live beam, so at least one beam stays live. The search ends if one finished hypothesis
    has led for `steps` steps in a row and `outputs` hypotheses are finished. Otherwise live beams could continue after
    every ending.

    Worked example (test_look_ahead_worked_example), table, beams and length_penalty as in BeamSearch:

        steps=1   step 1   a b (0.60) leads: b is decided, and a c (0.40) dropped
                  step 2   a b <end> (0.24) leads before a b a (0.18): the search ends with it
        steps=2   step 1   a b leads
                  step 2   a c <end> (0.36) leads: the two differ from the first token; the search ends as without steps

    Args:
        steps: the number of steps that tokens must lead, at least 1; None turns early commits off.
        outputs: the number of finished hypotheses asked for, at least 1.

    Source: local agreement of streamed speech translation (Liu et al. 2020, Low-Latency Sequence-to-Sequence Speech
    Recognition and Translation by Partial Hypothesis Selection), over steps of a search instead of chunks of audio.
    """

    def __init__(self, steps: int | None, *, outputs: int) -> None:
        self._steps, self._outputs = steps, outputs
        self._leaders: deque[tuple[int, ...]] = deque(maxlen=steps)
        self._decided = 0

    def filter_agreeing(self, running: list[Choice], pool: FinishedBeams) -> tuple[list[Choice], str | None]:
        """Decide tokens, and remove the continuations and hypotheses that disagree with them.

        Args:
            running: the live continuations of one step, best first; empty if the search is over.
            pool: the finished hypotheses; those that disagree are removed.

        Returns:
            The continuations left, empty if the search ends, and a note about the dropped ones, None if all stay.
        """
        if self._steps is None or not running:
            return running, None
        live = running[0].grown
        finished = bool(pool.hypotheses) and pool.hypotheses[0].score >= pool.score(live)
        self._leaders.append(pool.paths[0] if finished else live.tokens)
        if len(self._leaders) < self._steps:
            return running, None
        if finished and len(pool.hypotheses) >= self._outputs and self._leaders.count(pool.paths[0]) == self._steps:
            return [], None
        self._decided = shared_length([*self._leaders, live.tokens], self._decided)
        decided = live.tokens[: self._decided]
        kept = [choice for choice in running if choice.grown.tokens[: self._decided] == decided]
        return kept, _note(len(running) - len(kept), pool.keep(decided))


def _note(beams: int, finished: int) -> str | None:
    """Return a note with the number of dropped beams and hypotheses and the reason; None if all stay."""
    counted = ((beams, "beam", "beams"), (finished, "finished hypothesis", "finished hypotheses"))
    words = [f"{count} {one if count == 1 else many}" for count, one, many in counted if count]
    return f"{' and '.join(words)} dropped: they disagree with committed tokens" if words else None

"""What of a beam search can no longer change: what all paths share, and what has led for long enough.

Owns: the leaders of the last steps. Does not know: how beams grow and finish.
"""

from __future__ import annotations

from collections import deque

from unspool.strategies.beams import Choice, FinishedBeams, shared_length


class LookAhead:
    """Decide tokens once the leader has held them for `steps` steps in a row, and drop what disagrees with them.

    The leader of a step is what scores best at its present length: a live beam, or a finished hypothesis, which wins
    ties. The step in which a token appears counts, so steps=1 decides at once. What is decided never goes beyond the
    best live beam, so that one always goes on. A finished hypothesis that has led for `steps` steps in a row ends the
    search, if as many are finished as are asked for: the beams that go on would otherwise outlive every ending.

    Worked example (test_look_ahead_worked_example), table, beams and length_penalty as in BeamSearch:

        steps=1   step 1   a b (0.60) leads: b is decided, and a c (0.40) dropped
                  step 2   a b <end> (0.24) leads before a b a (0.18): the search ends with it
        steps=2   step 1   a b leads
                  step 2   a c <end> (0.36) leads: the two share nothing; the full search ends here, and so does this

    Args:
        steps: how long, at least 1; None decides nothing.
        outputs: how many finished hypotheses are asked for, at least 1.

    Source: local agreement of streamed speech translation (Liu et al. 2020, Low-Latency Sequence-to-Sequence Speech
    Recognition and Translation by Partial Hypothesis Selection), over steps of a search instead of chunks of sound.
    """

    def __init__(self, steps: int | None, *, outputs: int) -> None:
        self._steps, self._outputs = steps, outputs
        self._leaders: deque[tuple[int, ...]] = deque(maxlen=steps)
        self._decided = 0

    def filter_agreeing(self, running: list[Choice], pool: FinishedBeams) -> tuple[list[Choice], str | None]:
        """Return the continuations that agree with what is decided now, none to end the search, and what was dropped.

        Args:
            running: of one step, best first; none where the search is over anyway.
            pool: the finished hypotheses; those that disagree leave it.
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
    """Return what was dropped and why, in words."""
    counted = ((beams, "beam", "beams"), (finished, "finished hypothesis", "finished hypotheses"))
    words = [f"{count} {one if count == 1 else many}" for count, one, many in counted if count]
    return f"{' and '.join(words)} dropped: they disagree with what was committed" if words else None

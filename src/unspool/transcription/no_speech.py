"""The probability that a window holds no speech, read in the pass over its prompt.

Owns: the question to the engine. Does not know: the threshold.
"""

from __future__ import annotations

import math

from unspool.adapters import as_strategy
from unspool.protocols import Context, Conversation, Strategy, WrappedStrategy
from unspool.types import ROOT, Reply, Score


class WithNoSpeech(WrappedStrategy):
    """A wrapper that adds the probability of "no speech" after the start token to another strategy's first Turn.

    Use one object per request. After the request, `probability` holds the result.

    Args:
        inner: the strategy that writes the transcript.
        token: the token that means "no speech".
        tokens_after: tokens of the prompt after the start token.
    """

    def __init__(self, inner: Strategy, token: int, tokens_after: int) -> None:
        super().__init__(as_strategy(inner))
        self.probability = math.nan
        self._ask = Score(ROOT, (token,), back=tokens_after)

    def run(self, context: Context) -> Conversation:
        """Run the inner conversation; returns its hypotheses."""
        return self.run_with(context, (self._ask,), self._note)

    def _note(self, rows: Reply) -> None:
        self.probability = math.exp(rows[0].candidates[0].logprob)

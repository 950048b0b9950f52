"""Conversations that ask without writing: the next token's distribution, and the log-probabilities of given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unspool.adapters import as_strategy
from unspool.protocols import Context, Conversation, Strategy, WrappedStrategy
from unspool.types import ROOT, Hypothesis, Score, Space, Turn, Whole

if TYPE_CHECKING:
    from unspool.config.fields.options import Options


class NextTokenQuery(Strategy):
    """Ask for the whole distribution of what follows the prompt; the answer is the request's last reply.

    Args:
        space: of the strategy whose view is wanted.
    """

    name = "next_tokens"

    def __init__(self, space: Space = "logits") -> None:
        self.space: Space = space

    def max_branches(self, config: Options) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns no hypothesis."""
        yield Turn(asks=(Whole(ROOT),))
        return []


class ContinuationScores(Strategy):
    """Ask for the model's own log-probability of each token of a given continuation, in one pass.

    The prompt is everything but the continuation's last token, which need not be fed. The request's last reply has one
    row a token of the continuation, in order.

    Args:
        continuation: at least one token id.
    """

    name = "score"
    space: Space = "logits"

    def __init__(self, continuation: Sequence[int]) -> None:
        self.continuation = tuple(continuation)

    def max_branches(self, config: Options) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns no hypothesis."""
        count = len(self.continuation)
        yield Turn(
            asks=tuple(Score(ROOT, (token,), back=count - 1 - index) for index, token in enumerate(self.continuation))
        )
        return []


class WithPromptScores(WrappedStrategy):
    """Another strategy's conversation, with the prompt's own tokens scored along with its first Turn.

    Serves one request: after it, `prompt_logprobs` holds a log-probability for each prompt token but the first.

    Args:
        inner: the strategy that writes.
    """

    def __init__(self, inner: Strategy) -> None:
        super().__init__(as_strategy(inner))
        self.prompt_logprobs: tuple[float, ...] = ()

    def run(self, context: Context) -> Conversation:
        """Hold the inner conversation; returns its hypotheses."""
        prompt = context.prompt
        scores = tuple(Score(ROOT, (prompt[i],), back=len(prompt) - i) for i in range(1, len(prompt)))
        conversation = self.inner.run(context)
        first = next(conversation)
        reply = yield replace(first, asks=scores + first.asks)
        self.prompt_logprobs = tuple(row.candidates[0].logprob for row in reply[: len(scores)])
        reply = reply[len(scores) :]
        while True:
            try:
                turn = conversation.send(reply)
            except StopIteration as stop:
                outcome: list[Hypothesis] = stop.value
                return outcome
            reply = yield turn

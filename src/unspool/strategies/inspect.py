"""Queries without generation: the next token's distribution, and the log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from unspool.adapters import as_strategy
from unspool.protocols import Context, Conversation, Strategy, WrappedStrategy
from unspool.types import ROOT, FullDistribution, Hypothesis, Score, Space, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class NextTokenQuery(Strategy):
    """Ask for the whole next-token distribution after the prompt; the answer is the request's last reply.

    Args:
        space: the space of the strategy to inspect: "logits" or "log_probs".
    """

    name = "next_tokens"

    def __init__(self, space: Space = "logits") -> None:
        self.space: Space = space

    def max_branches(self, config: Options) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns an empty list."""
        yield Turn(asks=(FullDistribution(ROOT),))
        return []


class ContinuationScores(Strategy):
    """Ask for the model's own log-probability of each token of a given continuation, in one pass.

    The request's prompt is the real prompt plus the continuation without its last token, which is not fed. The
    request's last reply has one row per token of the continuation, in order.

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
        """Run the conversation; returns an empty list."""
        count = len(self.continuation)
        yield Turn(
            asks=tuple(Score(ROOT, (token,), back=count - 1 - index) for index, token in enumerate(self.continuation))
        )
        return []


class WithPromptScores(WrappedStrategy):
    """A wrapper that adds log-probabilities of the prompt's tokens to another strategy's first Turn.

    Use one object per request. After the request, `prompt_logprobs` has one log-probability per prompt token, in order,
    without the first token.

    Args:
        inner: the strategy that generates.
    """

    def __init__(self, inner: Strategy) -> None:
        super().__init__(as_strategy(inner))
        self.prompt_logprobs: tuple[float, ...] = ()

    def run(self, context: Context) -> Conversation:
        """Run the inner conversation; returns its hypotheses."""
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

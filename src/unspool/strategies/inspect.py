"""Conversations that ask without writing: the next token's distribution, and the log-probabilities of given text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from unspool.config import GenerationConfig
from unspool.protocols import Context, Conversation, Strategy
from unspool.types import ROOT, Hypothesis, Score, Space, Turn, Whole


class NextTokenQuery:
    """Ask for the whole distribution of what follows the prompt; the answer is the request's last reply.

    Args:
        space: of the strategy whose view is wanted.
    """

    name = "next_tokens"

    def __init__(self, space: Space = "logits") -> None:
        self.space: Space = space

    def max_branches(self, config: GenerationConfig) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns no hypothesis."""
        yield Turn(asks=(Whole(ROOT),))
        return []


class ContinuationScores:
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

    def max_branches(self, config: GenerationConfig) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns no hypothesis."""
        count = len(self.continuation)
        yield Turn(
            asks=tuple(Score(ROOT, (token,), back=count - 1 - index) for index, token in enumerate(self.continuation))
        )
        return []


class WithPromptScores:
    """Another strategy's conversation, with the prompt's own tokens scored along with its first Turn.

    Serves one request: after it, `prompt_logprobs` holds a log-probability for each prompt token but the first.

    Args:
        inner: the strategy that writes.
    """

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.name = inner.name
        self.space: Space = inner.space
        self.hidden_states: bool = getattr(inner, "hidden_states", False)
        self.leads: bool = getattr(inner, "leads", True)
        self.bears_dead_ends: bool = getattr(inner, "bears_dead_ends", False)
        self.prompt_logprobs: tuple[float, ...] = ()

    def max_branches(self, config: GenerationConfig) -> int:
        return self.inner.max_branches(config)

    def check(self, context: Context) -> None:
        """Raise what the inner strategy raises before anything is queued."""
        check = getattr(self.inner, "check", None)
        if check is not None:
            check(context)

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

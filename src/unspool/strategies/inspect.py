"""Queries without generation: the next token's distribution, and the log-probabilities of given tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from unspool.adapters import as_strategy
from unspool.protocols import Context, Conversation, Strategy, WrappedStrategy
from unspool.types import ROOT, FullDistribution, Reply, Score, Space, Top, Turn

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
    without the first token. `prompt_top_logprobs` has the most probable tokens at the same positions, best first.
    `prompt_ranks` has the ranks of the prompt's tokens there; see `Row.ranks`.

    Args:
        inner: the strategy that generates.
        num_top: number of most probable tokens per position, at least 0.
        ranks: True for `prompt_ranks`; else it stays empty.
    """

    def __init__(self, inner: Strategy, num_top: int = 0, *, ranks: bool = False) -> None:
        super().__init__(as_strategy(inner))
        self.num_top, self._ranks = num_top, ranks
        self.prompt_ranks: tuple[int, ...] = ()
        self.prompt_logprobs: tuple[float, ...] = ()
        self.prompt_top_logprobs: tuple[tuple[tuple[int, float], ...], ...] = ()

    def run(self, context: Context) -> Conversation:
        """Run the inner conversation; returns its hypotheses."""
        prompt = context.prompt
        backs = range(len(prompt) - 1, 0, -1)
        scores = tuple(Score(ROOT, (prompt[-back],), self._ranks, back=back) for back in backs)
        tops = tuple(Top(ROOT, self.num_top, back=back) for back in backs) if self.num_top else ()

        def note(rows: Reply) -> None:
            self.prompt_logprobs = tuple(row.candidates[0].logprob for row in rows[: len(scores)])
            self.prompt_ranks = tuple(rank for row in rows[: len(scores)] for rank in row.ranks)
            self.prompt_top_logprobs = tuple(
                tuple((each.token, each.logprob) for each in row.candidates) for row in rows[len(scores) :]
            )

        return self.run_with(context, (*scores, *tops), note)

"""Greedy search: always takes the most probable next token."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategy_facts import StrategyFacts
from unspool.types import ROOT, Commit, Extend, Hypothesis, Space, Top, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class Greedy(Strategy):
    """Greedy search: extend one branch by its best token until a token ends it.

    Worked example (test_greedy_worked_example), P(next | newest), prompt [a]:

        a: b 0.6, c 0.4      b: a 0.3, c 0.7      c: <end> 1.0

        a -> b (0.6) -> c (0.7) -> <end> (1.0)        score = ln 0.6 + ln 0.7 + ln 1.0 = -0.8675

    The score of the hypothesis is the sum of the model's own log-probabilities.

    Cost: one forward pass per token, with one row.
    """

    name = "greedy"
    space: Space = "logits"
    facts = StrategyFacts(
        selects=lambda values, do_sample, assistant: not do_sample,
        precedence=100,
        sampling_twin="sample",
        position=10,
    )

    def max_branches(self, config: Options) -> int:
        return 1

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns one hypothesis."""
        ask = (Top(ROOT, 1),)
        reply = yield Turn(asks=ask)
        length, score = 0, 0.0
        while True:
            best = reply[0].candidates[0]
            score += best.logprob
            if best.ends:
                return [Hypothesis(ROOT, length, best, score)]
            length += 1
            reply = yield Turn(moves=(Extend(ROOT, (best.token,)),), asks=ask, commits=(Commit(ROOT, ROOT, length),))

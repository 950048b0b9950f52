"""DoLa: decoding by contrasting layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.greedy import Greedy
from unspool.strategies.sample import Sampling
from unspool.strategy_facts import StrategyFacts
from unspool.types import Space

if TYPE_CHECKING:
    from unspool.config.fields.options import Options


class Dola(Strategy):
    """Greedy search, or sampling with `do_sample=True`, over the contrast of the last layer with an inner one.

    What the last layers add is where a model's facts show, so the log-probabilities of an inner layer are taken off
    the last one's: at each position, of the inner layers that `dola_layers` names, those of the one whose distribution
    differs most from the last. This stands between the model and the processors, in unspool.engine.readout, wherever
    `dola_layers` is set, and works under other strategies too. So the strategy of that name, which `dola_layers` alone
    leads to, has no more to do than take the tokens.

    One forward a token.
    Source: Chuang et al. 2023, DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models,
    section 2; transformers' generation with `dola_layers`.
    """

    name = "dola"
    space: Space = "logits"
    inner_layers = True
    facts = StrategyFacts(
        samples="optional",
        selected_by=("dola_layers",),
        selects=lambda values, do_sample, assistant: values["dola_layers"] is not None,
        precedence=80,
        needs="`dola_layers`",
        is_met=lambda values, assistant: values["dola_layers"] is not None,
        line_up={"dola": {"dola_layers": "low"}},
        position=90,
    )

    def max_branches(self, config: Options) -> int:
        return self.inner(config).max_branches(config)

    def run(self, context: Context) -> Conversation:
        """Hold the conversation; returns what greedy search or sampling does."""
        return self.inner(context.config).run(context)

    def inner(self, config: Options) -> Strategy:
        """Return the strategy that takes the tokens."""
        return Sampling() if config.do_sample else Greedy()

"""DoLa: decoding by contrasting layers, as greedy search or sampling."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.greedy import Greedy
from unspool.strategies.sample import Sampling
from unspool.strategy_facts import StrategyFacts
from unspool.types import Space

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class Dola(Strategy):
    """DoLa: greedy search, or sampling with `do_sample=True`, over the contrast of the last layer with an inner layer.

    The last layers of a model add factual knowledge. DoLa therefore subtracts the log-probabilities of an inner layer
    from those of the last layer. At each position it uses the layer of `dola_layers` with the distribution that
    differs most from the last layer's. unspool.engine.combine_logits computes the contrast between the model and the
    logits processors, under any strategy, if `dola_layers` is set. This strategy only chooses the tokens.

    Cost: one forward pass per token.
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
        """Run the conversation of greedy search or sampling; returns its hypotheses."""
        return self.inner(context.config).run(context)

    def inner(self, config: Options) -> Strategy:
        """Return the strategy that chooses the tokens."""
        return Sampling() if config.do_sample else Greedy()

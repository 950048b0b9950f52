"""Best-of-n sampling: draws several samples and returns the best, by log-probability or minimum Bayes risk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.ngram_f1 import mean_ngram_f1
from unspool.strategies.sample import Drawn, draw
from unspool.strategy_facts import StrategyFacts
from unspool.types import Space

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class BestOf(Strategy):
    """Best-of-n: draw `best_of` samples and return the best `num_return_sequences`, ranked by `best_of_by`:

        logprob   the mean of the model's own log-probabilities of the sample's tokens
        mbr       minimum Bayes risk: the mean resemblance to the other samples, an estimate over the distribution.
                  0 for a single sample. Resemblance is the n-gram F1 of unspool.strategies.ngram_f1

    The ending token counts as one token. If samples are equally good, the lower sample index ranks first. The `score`
    of an output is its value under `best_of_by`.

    Worked example (test_best_of_worked_example): three samples, their tokens with the model's probabilities,

        0: a .5  b .5  c .5  <end> 1      1: a .5  b .5  d .3  <end> 1      2: e .5  <end> 1

        logprob   ln 0.125 / 4 = -0.520, ln 0.075 / 4 = -0.648, ln 0.5 / 2 = -0.347                        best: 2
        mbr       0 and 1 share 3 of 4 tokens and 1 of 3 pairs: (3/4 + 1/3 + 0 + 0) / 4 = 0.2708; 2 shares the end
                  with each: (2 * 1/6 + 0 + 0 + 0) / 4 = 0.0833. Means: 0.1771, 0.1771, 0.0833             best: 0

    Sample i equals output i of sampling with `num_return_sequences=best_of` and the same seed. Tokens are committed
    only after all samples are finished.

    Cost: one forward pass per token for all samples together.
    Source: `best_of` of OpenAI's completions for the log-probability; Eikema and Aziz 2020, Is MAP Decoding All You
    Need?, section 6, for minimum Bayes risk by sampling.
    """

    name = "best_of"
    shows_tentative = False
    space: Space = "logits"
    facts = StrategyFacts(
        samples="always",
        reads=frozenset({"best_of", "best_of_by"}),
        selected_by=("best_of",),
        selects=lambda values, do_sample, assistant: do_sample and values["best_of"] is not None,
        precedence=70,
        needs="`best_of`",
        is_met=lambda values, assistant: values["best_of"] is not None,
        line_up={"best_of": {"best_of": 4}},
        position=100,
    )

    def max_branches(self, config: Options) -> int:
        return config.best_of or 1

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns `num_return_sequences` hypotheses, best first."""
        config = context.config
        samples = yield from draw(self.max_branches(config), committing=False)
        if config.best_of_by == "mbr":
            figures = mean_ngram_f1([sample.tokens for sample in samples])
        else:
            figures = [mean_logprob(sample) for sample in samples]
        ranked = sorted(zip(samples, figures, strict=True), key=lambda pair: -pair[1])
        best = ranked[: config.num_return_sequences]
        return [sample.hypothesis._replace(score=figure) for sample, figure in best]


def mean_logprob(sample: Drawn) -> float:
    """Return the mean of the model's own log-probabilities of a sample's tokens."""
    return sample.hypothesis.score / len(sample.tokens)

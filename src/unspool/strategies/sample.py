"""Sampling: draws every output token by token from the processed distribution."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategy_facts import StrategyFacts
from unspool.types import ROOT, Commit, Drop, Extend, Fork, Hypothesis, Move, Reply, Sample, Space, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class Sampling(Strategy):
    """Sampling: draw `num_return_sequences` independent outputs from one prompt, each under its own noise.

    The prompt is computed once: the root is asked once per output, then forked. Output i is branch i. Its draws are a
    function of (seed, prompt, i, position) only, so more outputs do not change the first ones.

    Worked example (test_sample_worked_example): at a position with P = (0.1, 0.9) and noise G = (2.0, -0.5) the draw is
    argmax(ln P + G) = argmax(-0.30, -0.61) = token 0.

    Outputs are ordered by their index.

    Cost: one forward pass per token for all outputs together.
    Source: Gumbel-max sampling, Gumbel 1954; Maddison et al. 2014, A* Sampling, section 2.
    """

    name = "sample"
    space: Space = "logits"
    facts = StrategyFacts(
        samples="always",
        selects=lambda values, do_sample, assistant: do_sample,
        precedence=90,
        needs="`do_sample=True`",
        line_up={"sample": {}, "top_k": {"top_k": 40}, "top_p": {"top_p": 0.95}, "min_p": {"min_p": 0.1}},
        position=20,
    )

    def max_branches(self, config: Options) -> int:
        return config.num_return_sequences or 1

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns one hypothesis per output, ordered by output index."""
        samples = yield from draw(self.max_branches(context.config), committing=True)
        return [sample.hypothesis for sample in samples]


class Drawn(NamedTuple):
    """A finished sample: its output tokens, including the ending token, and its hypothesis."""

    tokens: tuple[int, ...]
    hypothesis: Hypothesis


def draw(count: int, *, committing: bool) -> Generator[Turn, Reply, list[Drawn]]:
    """Run a conversation that draws `count` samples; returns them ordered by index.

    The `score` of a hypothesis is the sum of the model's own log-probabilities.

    Args:
        count: the number of samples, at least 1.
        committing: True if sample i is output i of the request, so each token is final as soon as it is drawn.
    """
    outputs = range(count)
    done: dict[int, Drawn] = {}
    tokens: dict[int, list[int]] = {output: [] for output in outputs}
    scores = dict.fromkeys(outputs, 0.0)
    live = list(outputs)
    length = 0
    reply = yield Turn(asks=tuple(Sample(ROOT, output=output) for output in live))
    while True:
        moves: list[Move] = []
        commits: list[Commit] = []
        for output, row in zip(live, reply, strict=True):
            drawn = row.candidates[0]
            tokens[output].append(drawn.token)
            scores[output] += drawn.logprob
            if drawn.ends:
                branch = output if length else ROOT
                finished = Hypothesis(branch, length, drawn, scores[output])
                done[output] = Drawn(tuple(tokens[output]), finished)
                commits.append(Commit(output, branch, length, finished))
                # Before the first fork all outputs share the root, which the other outputs still need.
                moves += [Drop(output)] if length else []
            else:
                moves += [Fork(ROOT, output)] if length == 0 and output != ROOT else []
                moves.append(Extend(output, (drawn.token,)))
                commits.append(Commit(output, output, length + 1))
        live = [output for output in live if output not in done]
        if not live:
            return [done[output] for output in outputs]
        length += 1
        asks = tuple(Sample(output, output=output) for output in live)
        reply = yield Turn(moves=tuple(moves), asks=asks, commits=tuple(commits) if committing else ())

"""Beam search: keeps the `num_beams` best partial sequences, and the best finished hypotheses in a pool."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.beams import (
    BEAM_OPTIONS,
    Beam,
    Choice,
    FinishedBeams,
    by_total,
    continuations,
    continue_with,
    has_beams,
    num_candidates,
    shared_length,
)
from unspool.strategies.lookahead import LookAhead
from unspool.strategy_facts import StrategyFacts
from unspool.types import ROOT, Ask, Commit, Reply, Space, Top, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class BeamSearch(Strategy):
    """Beam search: extend each of the `num_beams` beams by every token, and keep the `num_beams` best continuations.

    An ending token finishes a hypothesis only if it is among the `num_beams` best continuations of a step. Finished
    hypotheses are ranked by score / length ** length_penalty. `early_stopping` decides when the search ends:

        True      as soon as `num_beams` hypotheses are finished
        False     if the best live beam, at its present length, scores no better than the worst finished hypothesis
        "never"   if the best live beam could score no better even at the maximum length

    Worked example (test_beam_search_worked_example), P(next | newest), prompt [a], 2 beams, length_penalty 0:

        a: b 0.6, c 0.4      b: a 0.3, c 0.3, <end> 0.4      c: b 0.1, <end> 0.9

        step 1   beams a b (0.60), a c (0.40)
        step 2   a c <end> 0.36 and a b <end> 0.24 are the two best continuations: both finish; best first

    Greedy search takes b first and ends with 0.24. The common prefix of all live beams and the best finished hypothesis
    is committed; `lookahead_steps` commits more tokens earlier (LookAhead). Outputs are ordered best first.

    Cost: one forward pass per token for all beams together.
    Source: transformers 5, GenerationMixin._beam_search; Sutskever et al. 2014, section 3.2.
    """

    name = "beam"
    space: Space = "log_probs"
    allows_empty_rows = True
    facts = StrategyFacts(
        reads=BEAM_OPTIONS | {"lookahead_steps"},
        selected_by=("num_beams",),
        selects=lambda values, do_sample, assistant: has_beams(values, assistant),
        precedence=40,
        needs="`num_beams` above 1",
        is_met=has_beams,
        sampling_twin="beam_sample",
        line_up={"beam": {"num_beams": 4}},
        position=30,
    )

    def max_branches(self, config: Options) -> int:
        return config.num_beams

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns `num_return_sequences` hypotheses, best first."""
        config, width = context.config, context.config.num_beams
        count = num_candidates(context, width)
        finished = FinishedBeams.of(context, width)
        ahead = LookAhead(config.lookahead_steps, outputs=config.num_return_sequences)
        beams, next_branch, committed = [Beam(ROOT, (), 0.0)], 1, 0
        reply = yield Turn(asks=self.asks(beams, count))
        while True:
            choices = self.choices(beams, reply, count)
            running = finished.finish_and_filter(choices)
            running, note = ahead.filter_agreeing(running, finished)
            if not running:
                return finished.hypotheses[: config.num_return_sequences]
            moves, beams, next_branch = continue_with(beams, running, next_branch)
            committed = shared_length([beam.tokens for beam in beams] + finished.paths[:1], committed)
            commits = (Commit(0, beams[0].branch, committed),) if committed else ()
            reply = yield Turn(moves=moves, asks=self.asks(beams, count), commits=commits, note=note)

    def asks(self, beams: list[Beam], count: int) -> tuple[Ask, ...]:
        """Return one question per beam, in order of rank."""
        return tuple(Top(beam.branch, count) for beam in beams)

    def choices(self, beams: list[Beam], reply: Reply, count: int) -> list[Choice]:
        """Return the `count` best continuations of a step, best first; the first of them can finish hypotheses."""
        return by_total(continuations(beams, reply))[:count]

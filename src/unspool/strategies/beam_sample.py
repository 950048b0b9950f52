"""Beam sampling: beam search that draws each step's continuations instead of taking the best."""

from __future__ import annotations

from unspool.strategies.beam import BeamSearch
from unspool.strategies.beams import BEAM_OPTIONS, Beam, Choice, continuations, has_beams
from unspool.strategy_facts import StrategyFacts
from unspool.types import Ask, GumbelTopK, Reply


class BeamSampling(BeamSearch):
    """Beam sampling: draw each step's continuations from softmax(total) over all beams and tokens together.

    The draw is without replacement. To draw, add Gumbel noise to every total and take the largest (Gumbel top-k). So
    each beam is asked for its largest perturbed scores. The first `num_beams` drawn continuations can finish
    hypotheses. The live beams of the next step are the drawn continuations with the best totals that do not end.
    Finished hypotheses, lengths and `early_stopping` work as in beam search. Noise selects continuations and does not
    change their totals. The draws of different beams are not independent samples of the model's distribution.

    Worked example (test_beam_sampling_worked_example): totals ln (0.5, 0.3, 0.2), two drawn. The best of the two is
    token 0 unless it is drawn neither first nor second: with probability 1 - (0.3 * 0.2/0.7 + 0.2 * 0.3/0.8) = 0.8393.

    Cost: one forward pass per token for all beams together.
    Source: transformers 5, GenerationMixin._get_top_k_continuations with do_sample; Kool et al. 2019 for the noise.
    """

    name = "beam_sample"
    facts = StrategyFacts(
        samples="always",
        reads=BEAM_OPTIONS | {"lookahead_steps"},
        selected_by=("num_beams",),
        selects=lambda values, do_sample, assistant: do_sample and has_beams(values, assistant),
        precedence=30,
        needs="`num_beams` above 1",
        is_met=has_beams,
        line_up={"beam_sample": {"num_beams": 4}},
        position=40,
    )

    def asks(self, beams: list[Beam], count: int) -> tuple[Ask, ...]:
        """Return one question per beam; the beam's rank selects its noise."""
        return tuple(GumbelTopK(beam.branch, count, lane=rank) for rank, beam in enumerate(beams))

    def choices(self, beams: list[Beam], reply: Reply, count: int) -> list[Choice]:
        """Return the `count` drawn continuations, in the order drawn."""
        noisy = [beam.total + value for beam, row in zip(beams, reply, strict=True) for value in row.perturbed]
        drawn = sorted(zip(noisy, continuations(beams, reply), strict=True), key=lambda pair: -pair[0])
        return [choice for _, choice in drawn[:count]]

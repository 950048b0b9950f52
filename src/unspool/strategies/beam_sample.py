"""Beam sampling: a beam search whose continuations are drawn instead of being the best."""

from __future__ import annotations

from unspool.strategies.beam import BeamSearch
from unspool.strategies.beams import BEAM_OPTIONS, Beam, Choice, continuations, has_beams
from unspool.strategy_facts import StrategyFacts
from unspool.types import Ask, Perturbed, Reply


class BeamSampling(BeamSearch):
    """Draw a step's continuations without replacement from softmax(total) over all beams and tokens together.

    Adding Gumbel noise to every total and taking the largest is such a draw, in the order drawn, so each beam is asked
    for its largest perturbed scores. The first `num_beams` drawn may finish beams; of all drawn that go on, those with
    the best totals do. Finished beams, lengths and `early_stopping` are as in beam search. Noise chooses continuations
    and does not change their totals. Draws of different beams are not independent samples of the model's distribution.

    Worked example (test_beam_sampling_worked_example): totals ln (0.5, 0.3, 0.2), two drawn. The best of the two is
    token 0 unless it is drawn neither first nor second: with probability 1 - (0.3 * 0.2/0.7 + 0.2 * 0.3/0.8) = 0.8393.

    One forward a token for all beams together.
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
        """Return what is asked about each beam; its rank is the lane of its noise."""
        return tuple(Perturbed(beam.branch, count, lane=rank) for rank, beam in enumerate(beams))

    def choices(self, beams: list[Beam], reply: Reply, count: int) -> list[Choice]:
        """Return the continuations drawn, in the order drawn."""
        noisy = [beam.total + value for beam, row in zip(beams, reply, strict=True) for value in row.perturbed]
        drawn = sorted(zip(noisy, continuations(beams, reply), strict=True), key=lambda pair: -pair[0])
        return [choice for _, choice in drawn[:count]]

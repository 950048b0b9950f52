"""Diverse beam search: groups of beams, each with a penalty on the tokens that earlier groups chose."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

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
from unspool.strategy_facts import StrategyFacts, Values
from unspool.types import ROOT, Commit, Hypothesis, Reply, Score, Space, Top, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options

CUT_OFF = ("length", "time")
"""Ends by a limit: the token itself does not end the sequence, so it counts as chosen."""


class FinishedGroup(FinishedBeams):
    """The pool of one group. It closes by the rules of transformers 4, the reference for beam groups."""

    def finish_and_filter(self, choices: list[Choice]) -> list[Choice]:
        """Add the hypotheses that a step finishes, and return the continuations that stay live, best first.

        Two rules differ from plain beam search. The early stop compares with the best of all continuations, including
        those that end. Continuations cut off by a limit are added only if the pool is not done by then.
        """
        if not choices:
            return []
        self.add(choice for choice in choices[: self.size] if choice.candidate.ends not in (None, *CUT_OFF))
        self.update_early_stop(choices[0].grown)
        if self.done:
            return []
        running = [choice for choice in choices if choice.candidate.ends in (None, *CUT_OFF)][: self.size]
        self.add(choice for choice in running if choice.candidate.ends)
        return [choice for choice in running if not choice.candidate.ends]


class Group(NamedTuple):
    """Beams that compete only with each other, and their pool. A finished group has an empty list of beams."""

    beams: list[Beam]
    pool: FinishedGroup


class DiverseBeamSearch(Strategy):
    """Diverse beam search: `num_beam_groups` beam searches of equal width, with a penalty on repeated choices.

    The `num_beams` beams are divided into groups; each group has its own pool. Within a step the groups choose in turn.
    A token loses `diversity_penalty` for each beam of an earlier group that has chosen it at this step (Hamming
    diversity). Penalties stay in the total, so a `score` is the usual score minus the penalties paid. Ending tokens
    do not count as chosen.

    Each group ends by the rules of beam search, with `early_stopping` and `length_penalty`, while the others continue.
    Every beam of a finished group then counts as choosing the padding token, by default the end-of-sequence token.
    Outputs are the best hypotheses of all pools, best first. If two groups find the same text, it appears twice.

    Worked example (test_diverse_beam_search_worked_example), P(next | newest), prompt [a], 2 groups of one beam,
    diversity_penalty 0.5, length_penalty 0, two tokens:

        a: b 0.6, c 0.4      b: a 0.05, b 0.5, c 0.45      c: a 0.2, b 0.6, c 0.2

        step 1   group 1   b    ln 0.60       = -0.51     c    ln 0.40 = -0.92     b is chosen
                 group 2   b    ln 0.60 - 0.5 = -1.01     c    ln 0.40 = -0.92     c is chosen
        step 2   group 1   b b  ln 0.30       = -1.20     b c  ln 0.27 = -1.31     b is chosen
                 group 2   c b  ln 0.24 - 0.5 = -1.93     c a  ln 0.08 = -2.53     b is chosen again

    Outputs: b b with -1.20, c b with -1.93. A plain search of two beams ends with b b and b c.

    The common prefix of all live beams and the best hypothesis of all pools is committed.

    Cost: one forward pass per token for all beams together, for any number of groups.
    Source: Vijayakumar et al. 2018, Diverse Beam Search, algorithm 1; transformers 4.48,
    GenerationMixin._group_beam_search and BeamSearchScorer.
    """

    name = "diverse_beam"
    space: Space = "log_probs"
    allows_empty_rows = True
    facts = StrategyFacts(
        reads=BEAM_OPTIONS | {"num_beam_groups", "diversity_penalty"},
        selected_by=("num_beam_groups", "num_beams"),
        selects=lambda values, do_sample, assistant: has_groups(values, assistant),
        precedence=20,
        needs="`num_beams` above 1 and `num_beam_groups` above 1",
        is_met=lambda values, assistant: has_groups(values, assistant),
        # As many groups as beams: Vijayakumar et al. 2018, section 5.
        line_up={"diverse_beam": {"num_beams": 4, "num_beam_groups": 4, "diversity_penalty": 0.5}},
        position=50,
    )

    def max_branches(self, config: Options) -> int:
        return config.num_beams

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns `num_return_sequences` hypotheses, best first."""
        config = context.config
        size = config.num_beams // config.num_beam_groups
        count = num_candidates(context, size)
        pools = [FinishedGroup.of(context, size) for _ in range(config.num_beam_groups)]
        groups = [Group([Beam(ROOT, (), 0.0)], pool) for pool in pools]
        turn, next_branch, committed = Turn(), 1, 0
        while True:
            running = yield from choose_in_turn(groups, turn, count, padding(context))
            chosen = [choice for each in running for choice in each]
            if not chosen:
                return best_of(pools)[: config.num_return_sequences]
            live = [beam for group in groups for beam in group.beams]
            moves, beams, next_branch = continue_with(live, chosen, next_branch)
            rest = iter(beams)
            groups = [Group(list(islice(rest, len(each))), pool) for each, pool in zip(running, pools, strict=True)]
            committed = shared_length([beam.tokens for beam in beams] + best_path(pools), committed)
            commits = (Commit(0, beams[0].branch, committed),) if committed else ()
            turn = Turn(moves=moves, commits=commits)


def choose_in_turn(
    groups: list[Group], turn: Turn, count: int, padding: tuple[int, ...]
) -> Generator[Turn, Reply, list[list[Choice]]]:
    """Let the groups choose one after another.

    Args:
        groups: in the order in which they choose; at least one has beams.
        turn: moves and commits to send with the first question.
        count: the number of continuations to consider per group.
        padding: the token that each beam of a finished group chooses, or empty.

    Returns:
        Per group, the continuations that stay live, best first; empty if the group is finished.
    """
    running: list[list[Choice]] = []
    taken_tokens: list[int] = []
    # An empty Score only computes a branch's row, so the first Turn computes all groups in one pass.
    waiting = tuple(Score(beam.branch, ()) for group in groups for beam in group.beams)
    for group in groups:
        if not group.beams:
            running.append([])
            taken_tokens += padding * group.pool.size
            continue
        asks = tuple(Top(beam.branch, count, taken_tokens=tuple(taken_tokens)) for beam in group.beams)
        reply = yield replace(turn, asks=asks + waiting[len(asks) :])
        choices = by_total(continuations(group.beams, reply[: len(asks)]))[:count]
        running.append(group.pool.finish_and_filter(choices))
        tokens = (each.candidate.token for each in choices if each.candidate.ends in (None, *CUT_OFF))
        taken_tokens += islice(tokens, group.pool.size)
        turn, waiting = Turn(), ()
    return running


def padding(context: Context) -> tuple[int, ...]:
    """Return the padding token: `pad_token_id`, or else the first end-of-sequence token; empty if neither is set."""
    configured = context.config.pad_token_id
    return context.eos_token_ids[:1] if configured is None else (configured,)


def best_of(pools: list[FinishedGroup]) -> list[Hypothesis]:
    """Return the hypotheses of all pools, best first; ties go to the earlier group."""
    return sorted((each for pool in pools for each in pool.hypotheses), key=lambda hypothesis: -hypothesis.score)


def best_path(pools: list[FinishedGroup]) -> list[tuple[int, ...]]:
    """Return the tokens of the best hypothesis of all pools, as a list of one; empty if all pools are empty."""
    filled = [pool for pool in pools if pool.hypotheses]
    return max(filled, key=lambda pool: pool.hypotheses[0].score).paths[:1] if filled else []


def has_groups(values: Values, assistant: bool) -> bool:
    """Return True if there are several beams in several groups."""
    return has_beams(values, assistant) and values["num_beam_groups"] > 1

"""Contrastive search: chooses among the most probable tokens by probability minus a repetition penalty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from unspool.protocols import Context, Conversation, Strategy
from unspool.strategy_facts import StrategyFacts, Values
from unspool.types import (
    ROOT,
    Commit,
    Drop,
    Extend,
    Fork,
    Hypothesis,
    Move,
    Reply,
    Row,
    Similarity,
    Space,
    Top,
    Turn,
)

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class ContrastiveSearch(Strategy):
    """Contrastive search: try the `top_k` most probable tokens v and keep the v with the greatest

        (1 - penalty_alpha) * P(v) - penalty_alpha * (greatest cosine of v's hidden state to those before it)

    P is the whole processed distribution. The hidden states are the inputs of the model's head, of prompt and output.
    Every candidate has its own branch, so the pass that gives its hidden state also gives the distribution after it. If
    candidates are equally good, the more probable one is kept.

    Worked example (test_contrastive_worked_example), P(next | newest), prompt [a], top_k 2, penalty_alpha 0.6; the
    hidden state of a token is its own row:

        a: b 0.6, c 0.4      b: b 0.6, c 0.4      c: a 0.8, <end> 0.2      <end>: <end> 1

        step 1   b  0.4 * 0.6 - 0.6 * 1 = -0.36      c      0.4 * 0.4 - 0.6 * 0     =  0.16   c is kept
        step 2   a  0.4 * 0.8 - 0.6 * 1 = -0.28      <end>  0.4 * 0.2 - 0.6 * 0.243 = -0.07   <end> is kept

    Greedy search repeats b forever. Contrastive search writes c <end>. The score is the sum of the model's own
    log-probabilities, ln 0.4 + ln 0.2 = -2.5257. A token is committed as soon as it is kept.

    Cost: one forward pass per token and one more; each has `top_k` rows, except the prompt's.
    Source: Su et al. 2022, section 3.2; transformers 4.48, GenerationMixin._contrastive_search.
    """

    name = "contrastive"
    space: Space = "logits"
    hidden_states = True
    allows_empty_rows = True
    facts = StrategyFacts(
        reads=frozenset({"penalty_alpha", "top_k"}),
        selected_by=("penalty_alpha",),
        selects=lambda values, do_sample, assistant: not do_sample and has_candidates(values, assistant),
        precedence=50,
        needs="`penalty_alpha` above 0 and `top_k` above 1",
        is_met=lambda values, assistant: has_candidates(values, assistant),
        # Su et al. 2022, section 4.
        line_up={"contrastive": {"penalty_alpha": 0.6, "top_k": 4}},
        position=80,
    )

    def max_branches(self, config: Options) -> int:
        return config.top_k or 1

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns one hypothesis, or none if every token is forbidden after all candidates."""
        width, alpha = self.max_branches(context.config), context.config.penalty_alpha or 0.0
        reply = yield Turn(asks=(Top(ROOT, width),))
        row, kept, tried = reply[0], ROOT, [ROOT]
        length, total, fresh = 0, 0.0, 1
        while row.candidates:
            losers = [branch for branch in tried if branch != kept]
            tried = [kept, *range(fresh, fresh + len(row.candidates) - 1)]
            fresh += len(tried) - 1
            going = [branch for branch, each in zip(tried, row.candidates, strict=True) if not each.ends]
            reply = yield Turn(
                moves=try_out(row, tried, losers),
                asks=(*map(Similarity, tried), *(Top(branch, width) for branch in going)),
                commits=(Commit(ROOT, kept, length),) if length else (),
            )
            dead = {branch for branch, each in zip(going, reply[len(tried) :], strict=True) if not each.candidates}
            best = best_candidate(row, reply[: len(tried)], alpha, [branch in dead for branch in tried])
            kept, chosen = tried[best], row.candidates[best]
            total += chosen.logprob
            if chosen.ends:
                return [Hypothesis(kept, length, chosen, total)]
            row, length = reply[len(tried) + going.index(kept)], length + 1
        return []


def try_out(row: Row, branches: list[int], losers: list[int]) -> tuple[Move, ...]:
    """Return the moves that drop the losers, and put each candidate of the first branch's row on its own branch."""
    moves: list[Move] = [Drop(loser) for loser in losers]
    moves += [Fork(branches[0], child) for child in branches[1:]]
    moves += [Extend(branch, (each.token,)) for branch, each in zip(branches, row.candidates, strict=True)]
    return tuple(moves)


def best_candidate(row: Row, answers: Reply, alpha: float, dead: Sequence[bool]) -> int:
    """Return the index of the candidate to keep; ties go to the first.

    Args:
        row: the candidates.
        answers: one similarity per candidate.
        alpha: the weight of the repetition penalty, in [0, 1].
        dead: per candidate, True if every token after it is forbidden. A dead candidate is kept only if all are dead.
    """
    scores: list[tuple[bool, float]] = []
    for candidate, answer, is_dead in zip(row.candidates, answers, dead, strict=True):
        assert answer.similarity is not None, "the reply to Similarity must contain a number"
        score = (1 - alpha) * math.exp(candidate.score - row.log_norm) - alpha * answer.similarity
        scores.append((not is_dead, score))
    return scores.index(max(scores))


def has_candidates(values: Values, assistant: bool) -> bool:
    """Return True if the penalty is on and there are several candidates per step."""
    return (values["penalty_alpha"] or 0) > 0 and (values["top_k"] or 0) > 1

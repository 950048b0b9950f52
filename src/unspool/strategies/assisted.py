"""Assisted (speculative) decoding: a cheap method drafts tokens, and the model verifies the draft in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from unspool.errors import OptionError
from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.drafting import DraftedOutput, Drafter, DraftModel, Proposals, TurnBuilder, ask_one
from unspool.strategies.prompt_lookup import PromptLookup
from unspool.strategy_facts import ASSISTANT, StrategyFacts, Values
from unspool.types import ROOT, Commit, Drop, Fork, Hypothesis, Keep, Reply, Row, Space, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class Assisted(Strategy):
    """Speculative decoding: draft tokens with a draft model or prompt lookup, and verify each draft in one pass.

    One forward pass over a draft of n tokens gives the model's own choice at n + 1 positions. A choice is the best
    token, or the draw under the request's noise. Drafted tokens are accepted up to the first that differs from the
    model's choice. That choice is the next token; if all are accepted, the last choice is one more token. Every token
    is thus the model's own. The output equals that of greedy search, or of sampling with the same seed, for any draft.
    Noise is a function of (seed, prompt, output, position, token). A draft model that draws under the same noise
    therefore often draws the same token.

    Worked example (test_assisted_worked_example), P(next | newest), prompt [a], drafts of 2 tokens, 6 tokens in all:

        target  a: b 0.6, c 0.4     b: c 0.7, a 0.3     c: a 0.8, b 0.2
        draft   a: b 0.9, c 0.1     b: c 0.9, a 0.1     c: b 0.9, a 0.1

        pass    draft    fed      chosen    output
        1                a        b         b
        2       c b      b c b    c a       b c a             accepted 1 of 2; drafts shrink to 1
        3       b        a b      b c       b c a b c         accepted 1 of 1; drafts grow to 3
        4                c        a         b c a b c a       the last token needs no draft

        score = ln 0.6 + ln 0.7 + ln 0.8 + ln 0.6 + ln 0.7 + ln 0.8 = -2.1813

    All outputs of a prompt draft together and are verified in one pass. The first draft has `num_assistant_tokens`
    tokens. `num_assistant_tokens_schedule` sets the length of later drafts: "constant" keeps it. "heuristic" adds 2 if
    all tokens were accepted and otherwise removes 1, down to 1. "heuristic_transient" equals "heuristic", because the
    length is not kept between requests.
    Source: Leviathan et al. 2023, Fast Inference from Transformers via Speculative Decoding, with the draw fixed by the
    noise in place of rejection sampling; schedule: transformers 5, AssistedCandidateGenerator.
    """

    name = "assisted"
    space: Space = "logits"
    facts = StrategyFacts(
        samples="optional",
        reads=frozenset(
            {
                ASSISTANT,
                "prompt_lookup_num_tokens",
                "max_matching_ngram_size",
                "num_assistant_tokens",
                "num_assistant_tokens_schedule",
                "assistant_confidence_threshold",
            }
        ),
        selected_by=(ASSISTANT, "prompt_lookup_num_tokens"),
        selects=lambda values, do_sample, assistant: can_draft(values, assistant),
        precedence=60,
        needs="`prompt_lookup_num_tokens` or `assistant_model`",
        is_met=lambda values, assistant: can_draft(values, assistant),
        position=110,
    )

    def max_branches(self, config: Options) -> int:
        return config.num_return_sequences

    def check(self, context: Context) -> None:
        """Check that the request has exactly one way to draft; see check_drafting.

        Raises:
            OptionError: see check_drafting.
        """
        check_drafting(context.config, has_draft=context.draft is not None)

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns one hypothesis per output, ordered by output index.

        Raises:
            OptionError: see check_drafting.
        """
        config = context.config
        check_drafting(config, has_draft=context.draft is not None)
        drafter: Drafter = DraftModel(context) if context.draft else PromptLookup(context)
        outputs = range(self.max_branches(config))
        live = [DraftedOutput(output) for output in outputs]
        done: dict[int, Hypothesis] = {}
        turn_builder, drafts = TurnBuilder(), Proposals()
        reply = yield Turn(asks=tuple(ask_one(config, ROOT, output) for output in outputs))
        while True:
            done |= settle(live, drafts, reply, turn_builder)
            live = [writing for writing in live if writing.output not in done]
            if not live:
                return [done[output] for output in outputs]
            drafts = yield from drafter.propose(live, turn_builder)
            reply = yield verification(config, live, drafts, turn_builder)


def check_drafting(config: Options, *, has_draft: bool) -> None:
    """Check that assisted decoding can follow the options.

    Args:
        has_draft: True if the request has a draft model.

    Raises:
        OptionError: if the request has neither a draft model nor prompt lookup, or both. Also if it asks for several
            outputs without sampling, because all would be equal.
    """
    lookup, outputs = config.prompt_lookup_num_tokens, config.num_return_sequences
    if has_draft and lookup is not None:
        raise OptionError(
            "prompt_lookup_num_tokens",
            lookup,
            "cannot be used together with an assistant model",
            "leave one of them out",
        )
    if not has_draft and lookup is None:
        raise OptionError(
            "strategy", "assisted", "needs `prompt_lookup_num_tokens` or `assistant_model`", "give one of them"
        )
    if not config.do_sample and outputs > 1:
        allowed = "must be 1 without sampling, because all outputs would be equal"
        raise OptionError("num_return_sequences", outputs, allowed, "leave it out, or set `do_sample=True`")


def verification(config: Options, live: Sequence[DraftedOutput], drafts: Proposals, turn_builder: TurnBuilder) -> Turn:
    """Return the Turn that feeds the drafts and asks for the model's choice before each token and after the last."""
    asks = []
    for writing in live:
        guesses = drafts.get(writing.output, ())
        turn_builder.extend(writing.output, guesses)
        asks += [ask_one(config, writing.output, writing.output, back) for back in range(len(guesses), -1, -1)]
    return turn_builder.turn(asks)


def settle(
    live: Sequence[DraftedOutput], drafts: Proposals, reply: Reply, turn_builder: TurnBuilder
) -> dict[int, Hypothesis]:
    """Accept drafted tokens by the reply to a verification or to the first Turn.

    Returns:
        The hypotheses of the outputs that have just finished, by output index.
    """
    done = {}
    start = 0
    for writing in live:
        guesses = drafts.get(writing.output, ())
        rows = reply[start : start + len(guesses) + 1]
        start += len(rows)
        accepted, finished = accept(writing, guesses, rows, turn_builder)
        if guesses:
            label = f"output {writing.output}: " if len(live) > 1 else ""
            turn_builder.notes.append(f"{label}accepted {accepted} of {len(guesses)}")
        if finished:
            done[writing.output] = finished
    return done


class Verdict(NamedTuple):
    """The number of accepted tokens, and the hypothesis if the output is finished."""

    accepted: int
    finished: Hypothesis | None


def accept(writing: DraftedOutput, guesses: Sequence[int], rows: Sequence[Row], turn_builder: TurnBuilder) -> Verdict:
    """Append the model's choices to the output, up to and including the first that differs from the draft.

    Adds the moves and commits for this to the agenda.

    Args:
        guesses: the drafted tokens on the output's branch, after the verified tokens.
        rows: the model's choice at the position of each drafted token, and after the last.
    """
    # Before the first token all outputs share the root, which the other outputs still need.
    branch = writing.output if writing.tokens else ROOT
    num_held = len(writing.tokens) + len(guesses)
    accepted = 0
    for row, guess in zip(rows, (*guesses, None), strict=True):
        chosen = row.candidates[0]
        writing.score += chosen.logprob
        if chosen.ends:
            finished = Hypothesis(branch, len(writing.tokens), chosen, writing.score)
            turn_builder.commits.append(Commit(writing.output, branch, finished.length, finished))
            turn_builder.moves += [Drop(branch)] if writing.tokens else []
            return Verdict(accepted + (chosen.token == guess), finished)
        writing.tokens.append(chosen.token)
        if chosen.token != guess:
            break
        accepted += 1
    num_kept = len(writing.tokens) - 1
    if num_kept == 0 and writing.output != ROOT:
        turn_builder.moves.append(Fork(ROOT, writing.output))
    if num_kept < num_held:
        turn_builder.moves.append(Keep(writing.output, num_kept))
    turn_builder.extend(writing.output, writing.tokens[-1:])
    turn_builder.commits.append(Commit(writing.output, writing.output, len(writing.tokens)))
    return Verdict(accepted, None)


def can_draft(values: Values, assistant: bool) -> bool:
    """Return True if there is a draft model or prompt lookup is on."""
    return assistant or values["prompt_lookup_num_tokens"] is not None

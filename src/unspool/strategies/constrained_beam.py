"""Constrained beam search: beam search with outputs that contain the words of `force_words_ids`."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from unspool.errors import OptionError
from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies.beams import (
    BEAM_OPTIONS,
    Beam,
    Choice,
    FinishedBeams,
    continue_with,
    has_beams,
    num_candidates,
    shared_length,
)
from unspool.strategies.constraints import ForcedWords, Place, State, Template
from unspool.strategy_facts import StrategyFacts, Values
from unspool.types import ROOT, Ask, Candidate, Commit, FullDistribution, Hypothesis, Reply, Score, Space, Top, Turn

if TYPE_CHECKING:
    from unspool.options.fields.options import Options

FORBIDDEN: Final = float("-inf")


class Step(NamedTuple):
    """One continuation of a beam, and its state in the automaton of the forced words."""

    choice: Choice
    state: State

    @property
    def ends(self) -> bool:
        return self.choice.candidate.ends is not None


class BeamRow(NamedTuple):
    """A beam with its state and its reply: the best candidates, best first, and the forced ones in the order asked."""

    beam: Beam
    state: State
    candidates: tuple[Candidate, ...]
    forced: tuple[Candidate, ...]


class ConstrainedBeamSearch(Strategy):
    """Constrained beam search with dynamic beam allocation: every output contains the forced words.

    A step considers each beam's best tokens and all tokens that advance a forced word. It keeps the continuations that
    can still contain all forced words within `max_new_tokens`. If only enough tokens for the forced words are left,
    a forced word's next token is the only allowed token. Dynamic beam allocation distributes the `num_beams` places.
    Candidates that miss equally many forced tokens form a bank. The banks take turns, the most complete first: each
    turn gives a place to the bank's best candidate. So a hypothesis with more forced tokens, and thus a lower score,
    competes only within its bank. An ending token finishes a hypothesis only if it contains all forced words, and is
    among the `num_beams` best continuations that do.

    Worked example (test_constrained_beam_worked_example), P(next | newest), prompt [a], forced [[c]], 2 beams,
    length_penalty 0, max_new_tokens 3:

        a: a 0.5, b 0.4, c 0.1      b: a 0.5, c 0.4, <end> 0.1      c: a 0.2, <end> 0.8

        step 1   missing 0: c 0.10      missing 1: a 0.50, b 0.40         places: c, a
        step 2   missing 0: a c 0.05, c a 0.02      missing 1: a a 0.25, a b 0.20      c <end> 0.08 finishes
                                                                          places: a c, a a
        step 3   the last token: the two best continuations that contain c finish, a c <end> 0.04 and a a c 0.025

    The outputs are c <end> and a c <end>. Some outputs can lack forced words, if a needed token is forbidden for the
    last beams or the time limit is reached. They are the best incomplete continuations, with the reason in `unmet`.
    Outputs are ordered best first. Commits are exact, as in beam search.

    Cost: one forward pass per token for all beams together.
    Source: Post, Vilar 2018, Fast Lexically Constrained Decoding with Dynamic Beam Allocation, section 3.2.
    """

    name = "constrained_beam"
    space: Space = "log_probs"
    allows_empty_rows = True
    facts = StrategyFacts(
        reads=BEAM_OPTIONS | {"force_words_ids", "force_words", "force_words_ordered"},
        selected_by=("force_words_ids", "force_words"),
        selects=lambda values, do_sample, assistant: has_forced_words(values),
        precedence=10,
        needs="`force_words_ids` (or `force_words`) and `num_beams` above 1",
        is_met=lambda values, assistant: has_beams(values, assistant) and has_forced_words(values),
        line_up={"constrained_beam": {"num_beams": 4}},
        position=60,
    )

    def max_branches(self, config: Options) -> int:
        return config.num_beams

    def check(self, context: Context) -> None:
        """Check that an output can contain the forced words.

        Raises:
            OptionError: see check_constraints.
        """
        check_constraints(context)

    def run(self, context: Context) -> Conversation:
        """Run the conversation; returns `num_return_sequences` hypotheses, best first."""
        words = check_constraints(context)
        config, width = context.config, context.config.num_beams
        count = num_candidates(context, width)
        pool = FinishedBeams.of(context, width)
        beams, states, next_branch, committed = [Beam(ROOT, (), 0.0)], [words.start], 1, 0
        reply = yield Turn(asks=_asks(beams, states, count))
        for room in reversed(range(context.max_new_tokens)):
            rows = _rows(beams, states, reply)
            steps = _steps(rows, words)
            pool.add(step.choice for step in [step for step in steps if step.state.met][:width] if step.ends)
            running = share_out((step for step in steps if not step.ends and words.fits(step.state, room)), width)
            if running:
                pool.update_early_stop(running[0].choice.grown)
            if not running or pool.done:
                break
            moves, beams, next_branch = continue_with(beams, [step.choice for step in running], next_branch)
            states = [step.state for step in running]
            committed = shared_length([beam.tokens for beam in beams] + pool.paths[:1], committed)
            commits = (Commit(0, beams[0].branch, committed),) if committed else ()
            reply = yield Turn(moves=moves, asks=_asks(beams, states, count), commits=commits)
        found = pool.hypotheses[: config.num_return_sequences]
        lacking = config.num_return_sequences - len(found)
        if lacking:
            found += yield from _unmet(rows, words, room, lacking, pool)
        return found


def check_constraints(context: Context) -> ForcedWords:
    """Return the automaton of the request's forced words.

    Raises:
        OptionError: if the list of forced words is empty, or they need more than `max_new_tokens` tokens. Also if a
            forced token is outside the vocabulary or ends the output too early.
    """
    forced, ordered = context.config.force_words_ids, context.config.force_words_ordered
    if not forced:
        raise OptionError(
            "force_words_ids", forced, "must name at least one forced word", "leave it out for plain beam search"
        )
    words = ForcedWords(forced, ordered=ordered)
    for chain in words.words:
        for index, place in enumerate(chain):
            last = len(words.words) == 1 and index == len(chain) - 1
            for template in place:
                _check_template(template, context, last=last)
    need = words.need(words.start)
    if need > context.max_new_tokens:
        raise OptionError(
            "max_new_tokens",
            context.max_new_tokens,
            f"must be at least {need}, the number of tokens that the forced words need",
            "raise it (or `max_length`, or shorten the prompt), or force fewer words",
        )
    return words


def _check_template(template: Template, context: Context, *, last: bool) -> None:
    """Check that the tokens are in the vocabulary, and that end-of-sequence tokens come only at the end."""
    vocab = context.info.vocab_size
    for token in template:
        if token is not None and not 0 <= token < vocab:
            hint = "use ids of this model's own tokenizer"
            raise OptionError("force_words_ids", token, f"must hold token ids in [0, {vocab})", hint)
    if not set(context.eos_token_ids).isdisjoint(template[:-1] if last else template):
        raise OptionError(
            "force_words_ids",
            template,
            "can contain an end-of-sequence token only at the end of a single word, or of the last ordered word",
            "encode words with add_special_tokens=False, or set `ignore_eos`",
        )


def share_out(steps: Iterable[Step], places: int) -> list[Step]:
    """Return the `places` steps that dynamic beam allocation selects, best first.

    Steps that miss equally many forced tokens form a bank. The banks take turns, the most complete first; each turn
    gives a place to the bank's best step left. An exhausted bank leaves its share to the others.

    Args:
        steps: best first.
        places: the number of beams, at least 1.
    """
    banks: dict[int, int] = {}
    turns = []
    for rank, step in enumerate(steps):
        missing = step.state.missing
        turn = banks[missing] = banks.get(missing, -1) + 1
        turns.append((turn, missing, rank, step))
    chosen = sorted(turns, key=lambda each: each[:3])[:places]
    return [step for _, _, _, step in sorted(chosen, key=lambda each: each[2])]


def _asks(beams: list[Beam], states: list[State], count: int) -> tuple[Ask, ...]:
    """Return the questions: each beam's best tokens, then the tokens that advance a forced word, if any."""
    pairs = zip(beams, states, strict=True)
    forced = [Score(beam.branch, state.tokens) for beam, state in pairs if not state.met]
    return (*(Top(beam.branch, count) for beam in beams), *forced)


def _rows(beams: list[Beam], states: list[State], reply: Reply) -> list[BeamRow]:
    tops, forced = reply[: len(beams)], iter(reply[len(beams) :])
    return [
        BeamRow(beam, state, top.candidates, () if state.met else next(forced).candidates)
        for beam, state, top in zip(beams, states, tops, strict=True)
    ]


def _steps(rows: list[BeamRow], words: ForcedWords) -> list[Step]:
    """Return every allowed continuation once, best first; ties: the better beam first, then the lower token."""
    steps = []
    for row in rows:
        candidates = {each.token: each for each in (*row.candidates, *row.forced) if each.score > FORBIDDEN}
        for token in sorted(candidates):
            choice = Choice(row.beam, candidates[token], row.beam.total + candidates[token].score)
            steps.append(Step(choice, words.advance(row.state, token)))
    return sorted(steps, key=lambda step: -step.choice.total)


def _unmet(
    rows: list[BeamRow], words: ForcedWords, room: int, count: int, pool: FinishedBeams
) -> Generator[Turn, Reply, list[Hypothesis]]:
    """Return the best `count` continuations of the beams that cannot be completed, each with the reason.

    Args:
        room: the number of tokens left after the next one.
        count: the most hypotheses to return.
        pool: scores them like finished hypotheses.
    """
    stuck = {
        row.beam.branch: row for row in rows if not any(_can_go(step, words, room) for step in _steps([row], words))
    }
    best = [step.choice for step in _steps(list(stuck.values()), words)[:count]]
    if not best:  # every token is forbidden after these beams, so they end at their present length
        ended = [row for row in stuck.values() if row.beam.tokens][:count]
        found = []
        for row in ended:
            reason = yield from _reason(row, words, room)
            beam = row.beam
            found.append(Hypothesis(beam.branch, len(beam.tokens), None, pool.score(beam), reason))
        return found
    reasons: dict[int, str] = {}
    for branch in dict.fromkeys(each.beam.branch for each in best):
        reasons[branch] = yield from _reason(stuck[branch], words, room)
    return [
        Hypothesis(
            branch=each.beam.branch,
            length=len(each.beam.tokens),
            last=each.candidate,
            score=pool.score(each.grown),
            unmet=reasons[each.beam.branch],
        )
        for each in best
    ]


def _can_go(step: Step, words: ForcedWords, room: int) -> bool:
    return step.state.met if step.ends else words.fits(step.state, room)


def _reason(row: BeamRow, words: ForcedWords, room: int) -> Generator[Turn, Reply, str]:
    """Return the forced words that a beam misses, and the cause, as text for `unmet`."""
    needed = [each for each in row.forced if words.fits(words.advance(row.state, each.token), room)]
    if any(each.ends == "time" for each in needed):
        return f"{_named(words.unmet_words(row.state))} missing: the time limit came first"
    causes: dict[str, list[int]] = {}
    for each in needed:
        if each.score > FORBIDDEN:
            causes.setdefault(f"would have ended the output ({each.ends})", []).append(each.token)
    forbidden = [each.token for each in needed if each.score == FORBIDDEN]
    if forbidden:
        (answer,) = yield Turn(asks=(FullDistribution(row.beam.branch),))
        assert answer.distribution is not None, "Whole is answered with a distribution"
        for token in forbidden:
            by = answer.distribution.forbidden_by(token)
            causes.setdefault(f"forbidden by {by}" if by else "of probability 0 under the model", []).append(token)
    places = [place for each in needed for place in words.unmet_words(row.state, each.token)]
    told = (f"token{'s' * (len(of) > 1)} {', '.join(map(str, of))} {cause}" for cause, of in causes.items())
    return f"{_named(places)} missing: {'; '.join(told)}"


def _named(places: Iterable[Place]) -> str:
    """Return the forced words and their verb, to be followed by "missing"."""
    named = [" or ".join(str(list(template)) for template in place) for place in dict.fromkeys(places)]
    return f"the forced word {named[0]} is" if len(named) == 1 else f"the forced words {', '.join(named)} are"


def has_forced_words(values: Values) -> bool:
    """Return True if any word is forced."""
    return bool(values["force_words_ids"] or values["force_words"])

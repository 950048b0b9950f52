"""Constrained beam search on tables worked by hand, against all sequences there are, streamed, and where it fails."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest

from tests.sampling import sampled
from tests.strategies.test_constraints import holds, random_words
from tests.toys import drain, mixing_toy, request, results, run_alone
from unspool.config import GenerationConfig
from unspool.engine import Engine
from unspool.errors import OptionError
from unspool.protocols import Context, Conversation
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import ConstrainedBeamSearch
from unspool.types import ROOT, Committed, Drop, Extend, Fork, Output, Turn

A, B, C, STOP = range(4)
TABLE = {A: [0.5, 0.4, 0.1, 0], B: [0.5, 0, 0.4, 0.1], C: [0.2, 0, 0, 0.8]}


def worked() -> ToyRuntime:
    return ToyRuntime(TABLE, 4, eos_token_ids=(STOP,))


def outputs_of(make: Any, *prompt: int, num_beams: int = 2, **options: Any) -> tuple[Output, ...]:
    found = run_alone(make, request(prompt, num_beams=num_beams, **options))
    assert isinstance(found, tuple), found
    return found


def refusal(make: Any, *prompt: int, **options: Any) -> str:
    """Return the message with which the options are refused, on submission or as the request's own error."""
    try:
        outcome = run_alone(make, request(prompt, num_beams=2, **options))
    except OptionError as error:
        outcome = error
    assert isinstance(outcome, OptionError), outcome
    return str(outcome)


class Overheard:
    """Constrained beam search, noting the live beams of every Turn."""

    name, space = ConstrainedBeamSearch.name, ConstrainedBeamSearch.space

    def __init__(self) -> None:
        self.beams: list[list[tuple[int, ...]]] = []

    def max_branches(self, config: GenerationConfig) -> int:
        return ConstrainedBeamSearch().max_branches(config)

    def run(self, context: Context) -> Conversation:
        conversation = ConstrainedBeamSearch().run(context)
        paths: dict[int, tuple[int, ...]] = {ROOT: ()}
        turn = next(conversation)
        while True:
            paths = self.moved(paths, turn)
            self.beams.append([paths[branch] for branch in dict.fromkeys(ask.branch for ask in turn.asks)])
            reply = yield turn
            try:
                turn = conversation.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]

    def moved(self, paths: dict[int, tuple[int, ...]], turn: Turn) -> dict[int, tuple[int, ...]]:
        kept = {branch: path for branch, path in paths.items() if Drop(branch) not in turn.moves}
        kept |= {move.child: kept[move.parent] for move in turn.moves if isinstance(move, Fork)}
        return kept | {move.branch: kept[move.branch] + move.tokens for move in turn.moves if isinstance(move, Extend)}


def test_constrained_beam_worked_example() -> None:
    overheard = Overheard()
    found = outputs_of(
        worked, A, own={"strategy": overheard}, force_words_ids=[[C]], num_beams=2, num_return_sequences=2,
        length_penalty=0.0, max_new_tokens=3,
    )  # fmt: skip
    assert overheard.beams == [[()], [(A,), (C,)], [(A, A), (A, C)]]
    assert [output.token_ids for output in found] == [(C, STOP), (A, C, STOP)]
    assert [math.exp(output.score) for output in found] == pytest.approx([0.08, 0.04], abs=1e-6)


def every_sequence(vocab: int, longest: int, seed: int) -> dict[tuple[int, ...], float]:
    """Return every sequence of the mixing toy that ended, or is of the longest length, with its log-probability."""
    runtime, found = mixing_toy(vocab), {}
    level: dict[tuple[int, ...], float] = {(): 0.0}
    for length in range(1, longest + 1):
        grown: dict[tuple[int, ...], float] = {}
        for tokens, total in level.items():
            weights = runtime._probabilities((seed, *tokens))
            for token, weight in enumerate(weights):
                if weight:
                    ended = token == vocab - 1 or length == longest
                    (found if ended else grown)[(*tokens, token)] = total + math.log(weight / sum(weights))
        level = grown
    return found


@pytest.mark.parametrize("number", sampled(range(400), 30))
def test_at_full_width_the_best_sequence_that_holds_the_words_is_found(number: int) -> None:
    """Also one token short of what the words need one by one, where they must overlap, and exactly at the limit."""
    rng = random.Random(number)
    ordered, longest = rng.random() < 0.4, rng.randint(2, 5)
    words = random_words(rng, 3, longest=3)
    exact = {
        tokens: score
        for tokens, score in every_sequence(4, longest, number % 4).items()
        if holds(tokens, words, ordered=ordered)
    }
    options = {"force_words_ids": words, "force_words_ordered": ordered, "max_new_tokens": longest}
    if not exact:
        assert "`max_new_tokens` must be at least" in refusal(lambda: mixing_toy(4), number % 4, **options)
        return
    found = outputs_of(
        lambda: mixing_toy(4), number % 4, num_beams=4**longest, early_stopping="never", length_penalty=0.0,
        num_return_sequences=4, **options,
    )  # fmt: skip
    best = sorted(exact.values(), reverse=True)[:4]
    assert [output.score for output in found] == pytest.approx(best, abs=1e-4)
    assert all(exact[output.token_ids] == pytest.approx(output.score, abs=1e-4) for output in found)


def needed(words: Any, ordered: bool) -> int:
    """Return the length of the shortest text over three tokens that holds the words."""
    lengths = itertools.count(1)
    return next(
        length
        for length in lengths
        if any(holds(text, words, ordered=ordered) for text in itertools.product(range(3), repeat=length))
    )


@pytest.mark.parametrize("number", sampled(range(300), 25))
def test_every_output_of_every_width_and_length_holds_the_words(number: int) -> None:
    rng = random.Random(1000 + number)
    ordered, words = rng.random() < 0.4, random_words(rng, 3, longest=3)
    beams = rng.randint(2, 6)
    outputs = rng.randint(1, beams)
    penalty, early = rng.choice((-1.0, 0.0, 1.0, 2.0)), rng.choice((True, False, "never"))
    least = needed(words, ordered)
    for longest in (least, least + 1, least + 4):
        found = outputs_of(
            lambda: mixing_toy(7), number % 5, num_beams=beams, num_return_sequences=outputs, max_new_tokens=longest,
            force_words_ids=words, force_words_ordered=ordered, length_penalty=penalty, early_stopping=early,
            repetition_penalty=1.1,
        )  # fmt: skip
        assert 1 <= len(found) <= outputs and (longest == least or len(found) == outputs)
        assert len({output.token_ids for output in found}) == len(found)
        assert [output.score for output in found] == sorted((output.score for output in found), reverse=True)
        for output in found:
            assert output.unmet is None and holds(output.token_ids, words, ordered=ordered)
            assert output.score == pytest.approx(sum(output.scores) / len(output.token_ids) ** penalty, abs=1e-4)
            assert output.finish_reason in ("eos", "length")


def test_improbable_words_are_held_however_low_the_scores_fall() -> None:
    """Sums of log-probability below -100 once mixed up the banks of transformers' constrained beams."""
    row = [1.0, 1e-30, 1e-30, 1e-12]
    found = outputs_of(
        lambda: ToyRuntime(lambda tokens: row, 4, eos_token_ids=(3,)), 0, num_beams=2, num_return_sequences=2,
        force_words_ids=[[1, 2], [2, 1]], max_new_tokens=6,
    )  # fmt: skip
    assert all(holds(output.token_ids, [(1, 2), (2, 1)]) for output in found)
    assert sum(found[0].scores) < -200


def test_the_prompt_does_not_meet_a_word() -> None:
    found = outputs_of(worked, A, C, A, force_words_ids=[[C]], max_new_tokens=4)
    assert C in found[0].token_ids


def test_a_word_may_be_the_end_itself() -> None:
    found = outputs_of(worked, A, force_words_ids=[[B, STOP]], max_new_tokens=5, num_return_sequences=2)
    assert all(output.token_ids[-2:] == (B, STOP) and output.finish_reason == "eos" for output in found)


@pytest.mark.parametrize("number", sampled(range(200), 20))
def test_the_streamed_tokens_are_the_final_ones(number: int) -> None:
    rng = random.Random(2000 + number)
    words = random_words(rng, 5, most=2)
    options: dict[str, Any] = {"suppress_tokens": [rng.randrange(5)]} if number % 5 == 0 else {}
    now = itertools.count()
    engine = Engine(mixing_toy(9), clock=lambda: float(next(now)))
    ticket = engine.submit(
        request([number % 8, 1], num_beams=3, early_stopping=rng.choice((True, False, "never")), length_penalty=0.5,
                force_words_ids=words, max_new_tokens=14, max_time=5 if number % 4 == 1 else None, **options)
    )  # fmt: skip
    events = drain(engine)
    (output,) = results(events)[ticket]  # type: ignore[misc]
    commits = [event for event in events if isinstance(event, Committed)]
    assert tuple(token for event in commits for token in event.token_ids) == output.token_ids
    assert commits[-1].finish_reason == output.finish_reason
    assert (output.unmet is None) == holds(output.token_ids, words)


def test_streams_commit_before_the_end() -> None:
    engine = Engine(mixing_toy(9))
    engine.submit(request([1], num_beams=2, force_words_ids=[[5], [3, 4]], max_new_tokens=20))
    assert sum(isinstance(event, Committed) for event in drain(engine)) > 1


def test_one_pass_a_token_for_all_beams() -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    engine.submit(request([1, 2, 3], num_beams=5, max_new_tokens=6, force_words_ids=[[4, 5]], suppress_tokens=[16]))
    drain(engine)
    assert runtime.passes[0] == (3,)
    assert runtime.passes[1:] == [(1,) * 5] * 5


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"force_words_ids": [[5]], "suppress_tokens": [5]},
            "the forced word [5] is missing: token 5 forbidden by suppress_tokens",
        ),
        (
            {"force_words_ids": [[5, None, 6, 7]], "bad_words_ids": [[6, 7]]},
            "the forced word [5, None, 6, 7] is missing: token 7 forbidden by bad_words_ids",
        ),
        (
            {"force_words_ids": [[[5], [6]]], "suppress_tokens": [5], "bad_words_ids": [[6]]},
            "the forced word [5] or [6] is missing: token 5 forbidden by suppress_tokens; "
            "token 6 forbidden by bad_words_ids",
        ),
        (
            {"force_words_ids": [[4], [5]], "bad_words_ids": [[5]]},
            "the forced word [5] is missing: token 5 forbidden by bad_words_ids",
        ),
        (
            {"force_words_ids": [[5], [6]], "suppress_tokens": [5, 6]},
            "the forced words [5], [6] are missing: tokens 5, 6 forbidden by suppress_tokens",
        ),
        (
            {"force_words_ids": [[8]], "max_new_tokens": 3},
            "the forced word [8] is missing: token 8 of probability 0 under the model",
        ),
    ],
)
def test_an_output_without_the_word_says_what_kept_it_away(options: dict[str, Any], reason: str) -> None:
    def runtime() -> ToyRuntime:
        return ToyRuntime(lambda tokens: [*(1.0 + len(tokens) * token % 7 for token in range(8)), 0.0, 0.1], 10)

    found = outputs_of(runtime, 1, num_beams=3, num_return_sequences=2, **{"max_new_tokens": 6, **options})
    assert len(found) == 2
    assert {output.unmet for output in found} == {reason}


class EndsAt:
    """A criterion of a user's own: the output ends with token 5."""

    name = "at_five"

    def start(self, context: Context) -> None:
        return None

    def advance(self, state: None, token: int) -> None:
        return None

    def ends(self, state: None, token: int) -> bool:
        return token == 5


def test_a_word_that_ends_the_output_too_early_is_said_so() -> None:
    (output,) = outputs_of(mixing_toy, 1, own={"criteria": (EndsAt(),)}, force_words_ids=[[5, 6]], max_new_tokens=5)
    assert output.unmet == "the forced word [5, 6] is missing: token 5 would have ended the output (at_five)"
    (output,) = outputs_of(mixing_toy, 1, own={"criteria": (EndsAt(),)}, force_words_ids=[[6, 5]], max_new_tokens=5)
    assert output.unmet is None and output.finish_reason == "at_five" and output.token_ids[-2:] == (6, 5)


@pytest.mark.parametrize(("seconds", "met"), [(1, 0), (3, 1), (10**6, 3)])
def test_time_ends_with_what_there_is(seconds: int, met: int) -> None:
    words, now = [(5,), (7, 8)], itertools.count()
    engine = Engine(mixing_toy(), clock=lambda: float(next(now)))
    number = engine.submit(
        request([1], max_time=seconds, num_beams=3, num_return_sequences=3, max_new_tokens=30,
                force_words_ids=words, force_words_ordered=True)
    )  # fmt: skip
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple) and len(outputs) == 3
    assert [output.unmet is None for output in outputs] == [True] * met + [False] * (3 - met)
    for output in outputs:
        assert (output.unmet is None) == holds(output.token_ids, words, ordered=True)
        if output.unmet:
            assert output.finish_reason == "time" and "missing: the time limit came first" in output.unmet


def test_outputs_with_the_words_stand_before_better_ones_without() -> None:
    """From a, c comes next; from b it never does, though b is by far the more probable beginning."""
    table = {A: [0.0, 0.9, 0.1, 0], B: [0.0, 1.0, 0.0, 0], C: [0.1, 0.1, 0.8, 0]}
    found = outputs_of(
        lambda: ToyRuntime({**table, 3: [0.1, 0.9, 0, 0]}, 4), 3, num_return_sequences=2, force_words_ids=[[C]],
        max_new_tokens=2,
    )  # fmt: skip
    assert [output.token_ids for output in found] == [(A, C), (B, B)]
    assert found[0].unmet is None and found[0].score < found[1].score
    assert found[1].unmet == "the forced word [2] is missing: token 2 of probability 0 under the model"


def test_there_are_no_more_outputs_than_sequences_that_hold_the_words() -> None:
    found = outputs_of(mixing_toy, 1, num_beams=3, num_return_sequences=3, force_words_ids=[[5, 6]], max_new_tokens=2)
    assert [output.token_ids for output in found] == [(5, 6)] and found[0].unmet is None


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"force_words_ids": [[5, 6, 7], [8]], "max_new_tokens": 3}, "`max_new_tokens` must be at least 4"),
        ({"force_words_ids": [[5, 6], [6, 7]], "max_new_tokens": 2}, "`max_new_tokens` must be at least 3"),
        (
            {"force_words_ids": [[5, 6], [6, 7]], "force_words_ordered": True, "max_new_tokens": 3},
            "`max_new_tokens` must be at least 4",
        ),
        ({"force_words_ids": [[17]]}, "`force_words_ids` must hold token ids in [0, 17), got 17"),
        ({"force_words_ids": [[5, 16, 6]]}, "can contain an end-of-sequence token only at the end"),
        ({"force_words_ids": [[5, 16], [6]]}, "can contain an end-of-sequence token only at the end"),
        ({"force_words_ids": [[5, 16], [6]], "force_words_ordered": True}, "only at the end"),
    ],
)
def test_words_that_no_output_could_hold_are_refused(options: dict[str, Any], said: str) -> None:
    assert said in refusal(mixing_toy, 1, **options)


def test_ends_within_words_are_fine_where_nothing_ends() -> None:
    words: Sequence[Sequence[int]] = [[5, 16], [16, 6]]
    (output,) = outputs_of(mixing_toy, 1, force_words_ids=words, ignore_eos=True, max_new_tokens=3)
    assert output.token_ids == (5, 16, 6)

"""Look-ahead commits: what they decide, what they drop, and that what was streamed is what comes out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.strategies.test_beam import STOP, A, B, C, outputs_of, worked
from tests.toys import drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.protocols import Context, Conversation, Strategy
from unspool.strategies import STRATEGIES
from unspool.types import Candidate, Commit, Committed, Drop, Extend, Fork, Hypothesis, Output, Row, Turn


def step(**probabilities: float) -> Row:
    """The answer about one beam of the worked example's letters, best first; `end` ends."""
    names = {"a": A, "b": B, "c": C, "end": STOP}
    ranked = sorted(probabilities.items(), key=lambda item: -item[1])
    candidates = tuple(
        Candidate(names[name], math.log(p), math.log(p), "eos" if name == "end" else None) for name, p in ranked
    )
    return Row(candidates, 0.0)


def converse(rows: Sequence[tuple[Row, ...]], **options: Any) -> tuple[list[Turn], list[Hypothesis] | None]:
    """Hold the conversation by hand. Returns its turns, and the outcome where there is one."""
    asked = request([A], max_new_tokens=9, length_penalty=0.0, **options)
    context = Context(
        config=asked.config, prompt=(A,), max_new_tokens=9, seed=0, info=worked().info, eos_token_ids=(STOP,)
    )
    conversation = STRATEGIES["beam"].run(context)
    turns = [next(conversation)]
    try:
        for reply in rows:
            turns.append(conversation.send(reply))
    except StopIteration as stop:
        return turns, stop.value
    return turns, None


AFTER_A, AFTER_B, AFTER_C = step(b=0.6, c=0.4), step(a=0.3, c=0.3, end=0.4), step(b=0.1, end=0.9)


def test_look_ahead_worked_example() -> None:
    options: dict[str, Any] = {"num_beams": 2, "length_penalty": 0.0, "max_new_tokens": 4}
    for steps, tokens, probability in [(1, (B, STOP), 0.24), (2, (C, STOP), 0.36), (None, (C, STOP), 0.36)]:
        (found,) = outputs_of(worked, A, lookahead_steps=steps, **options)
        assert found.token_ids == tokens
        assert math.exp(found.score) == pytest.approx(probability, abs=1e-6)

    turns, outcome = converse([(AFTER_A,), (AFTER_B,)], num_beams=2, lookahead_steps=1)
    assert turns[1].commits == (Commit(0, 0, 1),)
    assert turns[1].note == "1 beam dropped: they disagree with committed tokens"
    assert [ask.branch for ask in turns[1].asks] == [0]
    assert outcome is not None and [(each.branch, each.length) for each in outcome] == [(0, 1)]

    turns, outcome = converse([(AFTER_A,), (AFTER_B, AFTER_C)], num_beams=2, lookahead_steps=2)
    assert turns[1].commits == () and turns[1].note is None
    assert outcome is not None and math.exp(outcome[0].score) == pytest.approx(0.36)


def test_a_beam_that_loses_the_lead_starts_over() -> None:
    """Leaders b, c, c: with two steps of look-ahead c is decided at the third, and the beam of b goes."""
    rows = [(AFTER_A,), (step(a=0.5, c=0.5), step(a=0.9, b=0.1)), (step(a=1.0), step(a=1.0))]
    turns, outcome = converse(rows, num_beams=2, lookahead_steps=2)
    assert outcome is None
    assert [turn.commits for turn in turns[:3]] == [(), (), ()]
    (commit,) = turns[3].commits
    assert commit.length == 3  # one beam is left, so all it holds is certain
    assert turns[3].note == "1 beam dropped: they disagree with committed tokens"
    assert any(isinstance(move, Drop) for move in turns[3].moves)
    assert len(turns[3].asks) == 1


def test_finished_ones_that_disagree_are_dropped_and_counted() -> None:
    """a c <end> has 0.36, less than a b a with 0.54; b, the leaders' for two steps, is decided then."""
    rows = [(AFTER_A,), (step(a=0.9, c=0.1), step(end=0.9, b=0.01)), (step(a=1.0), step(a=1.0))]
    turns, _ = converse(rows, num_beams=2, lookahead_steps=2, early_stopping="never")
    assert turns[2].note == "1 finished hypothesis dropped: they disagree with committed tokens"
    assert turns[2].commits == (Commit(0, turns[2].asks[0].branch, 1),)
    (third,) = turns[3].commits
    assert third.length == 3
    assert turns[3].note == "1 beam dropped: they disagree with committed tokens"


def test_an_ending_that_leads_long_enough_ends_the_search() -> None:
    """b <end> has 0.5 from the first step on; nothing fills the pool of 3, and the full search writes on."""
    rows = [(step(end=0.5, b=0.3, c=0.2),), (step(a=1.0), step(a=1.0)), (step(a=1.0), step(a=1.0))]
    for steps, turns_held in [(1, 1), (2, 2), (3, 3)]:
        turns, outcome = converse(rows, num_beams=3, lookahead_steps=steps, early_stopping="never")
        assert outcome is not None and len(outcome) == 1 and outcome[0].last is not None
        assert outcome[0].last.token == STOP
        assert len(turns) == turns_held
    assert converse(rows, num_beams=3, early_stopping="never")[1] is None
    # Two are asked for and one is finished: the search goes on.
    assert converse(rows, num_beams=3, num_return_sequences=2, lookahead_steps=1, early_stopping="never")[1] is None


@pytest.mark.parametrize("prompt", range(12))
def test_one_step_is_greedy_search(prompt: int) -> None:
    """Whatever the beams: the best token of the only beam is decided at once, an ending too."""
    (greedy,) = outputs_of(lambda: mixing_toy(5), prompt % 4, prompt // 4, max_new_tokens=12)
    (found,) = outputs_of(
        lambda: mixing_toy(5), prompt % 4, prompt // 4, max_new_tokens=12, num_beams=4, lookahead_steps=1
    )
    assert found.token_ids == greedy.token_ids


configs = st.fixed_dictionaries(
    {
        "num_beams": st.integers(2, 5),
        "lookahead_steps": st.integers(1, 6),
        "early_stopping": st.sampled_from([True, False, "never"]),
        "length_penalty": st.sampled_from([-1.0, 0.0, 1.0, 2.0]),
        "max_new_tokens": st.integers(1, 14),
        "do_sample": st.booleans(),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
    }
)


def search(prompt: list[int], vocab: int, asked: dict[str, Any], seed: int) -> tuple[tuple[Output, ...], list[Any]]:
    runtime = mixing_toy(vocab)
    engine = Engine(runtime)
    number = engine.submit(request(prompt, seed=seed, **asked))
    events = drain(engine)
    assert not runtime.cached, "sequences were left in the runtime"
    found = results(events)[number]
    assert isinstance(found, tuple), found
    return found, events


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(asked=configs, outputs=st.integers(1, 3), vocab=st.integers(3, 9), seed=st.integers(0, 99), data=st.data())
def test_what_was_streamed_is_what_comes_out(
    asked: dict[str, Any], outputs: int, vocab: int, seed: int, data: st.DataObject
) -> None:
    """Any config: the streamed tokens are those of output 0, and outputs share what was committed by look-ahead."""
    asked = {**asked, "num_return_sequences": min(outputs, asked["num_beams"])}
    prompt = data.draw(st.lists(st.integers(0, vocab - 1), min_size=1, max_size=3))
    found, events = search(prompt, vocab, asked, seed)
    commits = [event for event in events if isinstance(event, Committed) and event.output == 0]
    assert tuple(token for event in commits for token in event.token_ids) == found[0].token_ids
    assert 1 <= len(found) <= asked["num_return_sequences"]
    scores = [output.score for output in found]
    assert scores == sorted(scores, reverse=True)

    full, _ = search(prompt, vocab, {**asked, "lookahead_steps": asked["max_new_tokens"]}, seed)
    asked.pop("lookahead_steps")
    assert full == search(prompt, vocab, asked, seed)[0]


class Observed:
    """A strategy, with the output tokens of its live branches at every turn, in the order asked about."""

    def __init__(self, inner: Strategy) -> None:
        self.name, self.space, self.max_branches, self._inner = inner.name, inner.space, inner.max_branches, inner
        self.turns: list[tuple[Turn, list[tuple[int, ...]]]] = []

    def run(self, context: Context) -> Conversation:
        inner, live = self._inner.run(context), {0: ()}
        turn = next(inner)
        try:
            while True:
                before = dict(live)
                for move in turn.moves:
                    if isinstance(move, Fork):
                        live[move.child] = before[move.parent]
                for move in turn.moves:
                    if isinstance(move, Extend):
                        live[move.branch] += move.tokens
                    elif isinstance(move, Drop):
                        del live[move.branch]
                self.turns.append((turn, [live[ask.branch] for ask in turn.asks]))
                assert len(turn.asks) == len(live)
                turn = inner.send((yield turn))
        except StopIteration as stop:
            return stop.value


@pytest.mark.parametrize("name", ["beam", "beam_sample"])
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("prompt", [(1,), (2, 5), (3, 3, 3)])
def test_commits_are_what_the_last_leaders_share(name: str, steps: int, prompt: tuple[int, ...]) -> None:
    """While nothing finishes, the rule can be read off the turns by itself."""
    observed = Observed(STRATEGIES[name])
    engine = Engine(mixing_toy(9))
    engine.submit(
        request(prompt, num_beams=4, lookahead_steps=steps, max_new_tokens=25, ignore_eos=True,
                own={"strategy": observed})
    )  # fmt: skip
    drain(engine)
    decided, dropped = 0, 0
    for index, (turn, beams) in enumerate(observed.turns[1:], start=1):
        leaders = [each[0] for _, each in observed.turns[max(1, index - steps + 1) : index + 1]]
        if len(leaders) == steps:
            decided = max(decided, len(commonprefix(leaders)))
        assert all(beam[:decided] == beams[0][:decided] for beam in beams)
        committed = turn.commits[0].length if turn.commits else 0
        assert committed == max(decided, len(commonprefix(beams)))
        assert (len(beams) < 4) == (turn.note is not None)
        dropped += turn.note is not None
    assert dropped >= {1: 24, 2: 1, 3: 1, 5: 0}[steps]


@pytest.mark.parametrize("do_sample", [False, True])
def test_dropped_beams_are_released(do_sample: bool) -> None:
    runtime = mixing_toy(9)
    engine = Engine(runtime)
    engine.submit(
        request([1, 2], num_beams=4, lookahead_steps=1, do_sample=do_sample, max_new_tokens=20, ignore_eos=True)
    )
    held = []
    while not engine.idle:
        engine.step()
        engine.check()
        held.append(len(runtime.cached))
    assert held == [1] * 19 + [0]


def test_all_outputs_share_what_was_committed() -> None:
    found, events = search([1, 2], 9, {
        "num_beams": 4, "num_return_sequences": 3, "lookahead_steps": 2, "max_new_tokens": 12, "ignore_eos": True,
    }, 0)  # fmt: skip
    streamed = [event.token_ids for event in events if isinstance(event, Committed) and not event.finish_reason]
    committed = tuple(token for tokens in streamed for token in tokens)
    assert len(committed) >= 4 and len(found) == 3
    assert all(output.token_ids[: len(committed)] == committed for output in found)

"""Assisted decoding: the exchange by hand, the output of plain decoding whatever is guessed, and what it costs."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, cast

import pytest

from tests.sampling import sampled
from tests.toys import drain, mixing_toy, request, results, run_alone
from unspool.config import GenerationConfig, resolve
from unspool.engine import Engine
from unspool.errors import OptionError
from unspool.protocols import Context
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies.assisted import Assisted
from unspool.types import (
    DRAFT,
    ROOT,
    Candidate,
    Commit,
    Committed,
    Drop,
    Extend,
    Failed,
    Fork,
    Hypothesis,
    Keep,
    ModelInfo,
    Row,
    Sample,
    Top,
    Turn,
)

A, B, C = range(3)
VOCAB = 17


class EqualEnds:
    """A criterion: ends with this many times the same token in a row. The state is (token, times)."""

    name = "equal"

    def __init__(self, count: int) -> None:
        self.count = count

    def start(self, context: Context) -> Any:
        return (-1, 0)

    def advance(self, state: Any, token: int) -> Any:
        return (token, state[1] + 1 if token == state[0] else 1)

    def ends(self, state: Any, token: int) -> bool:
        return bool(self.advance(state, token)[1] == self.count)


def draw_options(rng: random.Random, vocab: int = VOCAB) -> dict[str, Any]:
    """Return random options: greedy or sampled, with processors that depend on what was written."""
    tokens = range(vocab - 1)
    pool: dict[str, Any] = {
        "repetition_penalty": rng.choice((0.7, 1.3)),
        "frequency_penalty": rng.uniform(-0.5, 0.5),
        "no_repeat_ngram_size": rng.randint(2, 4),
        "min_new_tokens": rng.randint(1, 6),
        "bad_words_ids": [[rng.choice(tokens)], [rng.choice(tokens), rng.choice(tokens)]],
        "eos_token_id": [vocab - 1, rng.choice(tokens)],
        "ignore_eos": True,
        "suppress_tokens": [rng.choice(tokens)],
        "logprobs": 2,
    }
    options = {name: pool[name] for name in sorted(pool) if rng.random() < 0.2}
    options["max_new_tokens"] = rng.choice((1, 2, 3, *(rng.randint(6, 30) for _ in range(6))))
    if options["max_new_tokens"] < options.get("min_new_tokens", 0):
        del options["min_new_tokens"]
    if rng.random() < 0.6:
        sampling = {
            "temperature": rng.choice((0.4, 0.8, 1.5)),
            "top_k": rng.randint(1, 8),
            "top_p": rng.uniform(0.2, 1.0),
            "xtc_probability": 0.5,
        }
        options |= {name: value for name, value in sampling.items() if rng.random() < 0.4}
        options |= {"do_sample": True, "num_return_sequences": rng.choice((1, 1, 2, 4))}
    return options


def has_same_outputs(found: Any, plain: Any) -> bool:
    """Return whether two outcomes are the same tokens, endings and figures."""
    assert isinstance(plain, tuple), plain
    assert isinstance(found, tuple), found
    for one, other in zip(found, plain, strict=True):
        if (one.token_ids, one.finish_reason) != (other.token_ids, other.finish_reason):
            return False
        for name in ("logprobs", "scores"):
            assert getattr(one, name) == pytest.approx(getattr(other, name), abs=1e-4)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert (one.top_logprobs is None) is (other.top_logprobs is None)
        tops = zip(one.top_logprobs or (), other.top_logprobs or (), strict=True)
        assert all([token for token, _ in mine] == [token for token, _ in theirs] for mine, theirs in tops)
    return True


# --- the exchange, by hand ----------------------------------------------------------------------------------------


def row(token: int, probability: float, ends: str | None = None) -> Row:
    return Row((Candidate(token, math.log(probability), math.log(probability), ends),), 0.0)


def context_of(*, draft: ModelInfo | None = None, **options: Any) -> Context:
    return Context(
        config=resolve(options, None, GenerationConfig(), assistant=draft is not None, custom="assisted"),
        prompt=(A,),
        max_new_tokens=options["max_new_tokens"],
        seed=0,
        info=ModelInfo(name="target", vocab_size=3),
        eos_token_ids=(),
        draft=draft,
    )


DRAFT_INFO = ModelInfo(name="draft", vocab_size=3)


def test_assisted_worked_example() -> None:
    talk = Assisted().run(context_of(draft=DRAFT_INFO, num_assistant_tokens=2, max_new_tokens=6))
    assert next(talk) == Turn(asks=(Top(ROOT, 1),))
    assert talk.send((row(B, 0.6),)) == Turn(
        moves=(Extend(ROOT, (B,)), Extend(DRAFT, (B,))), asks=(Top(DRAFT, 1),), commits=(Commit(0, ROOT, 1),)
    )
    assert talk.send((row(C, 0.9),)) == Turn(moves=(Extend(DRAFT, (C,)),), asks=(Top(DRAFT, 1),))
    assert talk.send((row(B, 0.9),)) == Turn(
        moves=(Extend(ROOT, (C, B)),), asks=(Top(ROOT, 1, back=2), Top(ROOT, 1, back=1), Top(ROOT, 1))
    )
    assert talk.send((row(C, 0.7), row(A, 0.8), row(C, 0.7))) == Turn(
        moves=(Keep(ROOT, 2), Extend(ROOT, (A,)), Extend(DRAFT, (A,))),
        asks=(Top(DRAFT, 1),),
        commits=(Commit(0, ROOT, 3),),
        note="accepted 1 of 2",
    )
    assert talk.send((row(B, 0.9),)) == Turn(moves=(Extend(ROOT, (B,)),), asks=(Top(ROOT, 1, back=1), Top(ROOT, 1)))
    assert talk.send((row(B, 0.6), row(C, 0.7))) == Turn(
        moves=(Drop(DRAFT), Extend(ROOT, (C,))),
        asks=(Top(ROOT, 1),),
        commits=(Commit(0, ROOT, 5),),
        note="accepted 1 of 1",
    )
    last = row(A, 0.8, "length")
    with pytest.raises(StopIteration) as stop:
        talk.send((last,))
    (found,) = stop.value.value
    assert found == Hypothesis(ROOT, 5, last.candidates[0], found.score)
    assert found.score == pytest.approx(-2.1813, abs=1e-4)


def test_the_worked_example_in_the_engine() -> None:
    target = ToyRuntime({A: [0, 0.6, 0.4], B: [0.3, 0, 0.7], C: [0.8, 0.2, 0]}, 3)
    draft = ToyRuntime({A: [0, 0.9, 0.1], B: [0.1, 0, 0.9], C: [0.1, 0.9, 0]}, 3)
    (output,) = assisted(target, draft, [A], num_assistant_tokens=2, max_new_tokens=6)
    assert output.token_ids == (B, C, A, B, C, A) and output.score == pytest.approx(-2.1813, abs=1e-4)
    assert target.passes == [(1,), (3,), (2,), (1,)]
    assert draft.passes == [(2,), (1,), (1,)]


def test_the_draft_branch_keeps_what_was_accepted_and_is_brought_in_step() -> None:
    talk = Assisted().run(context_of(draft=DRAFT_INFO, num_assistant_tokens=3, max_new_tokens=20))
    next(talk)
    talk.send((row(B, 1.0),))
    for token in (C, C):
        talk.send((row(token, 1.0),))
    verification = talk.send((row(C, 1.0),))
    assert verification.moves == (Extend(ROOT, (C, C, C)),)
    # Nothing holds: the draft model has been fed two of its three guesses, and forgets both.
    turn = talk.send((row(A, 1.0), *(row(B, 1.0),) * 3))
    assert turn.moves == (Keep(ROOT, 1), Keep(DRAFT, 1), Extend(ROOT, (A,)), Extend(DRAFT, (A,)))
    assert turn.note == "accepted 0 of 3"
    talk.send((row(C, 1.0),))
    verification = talk.send((row(C, 1.0),))
    assert verification.moves == (Extend(ROOT, (C, C)),)
    # Everything holds: it lacks its own last guess and the token behind it.
    turn = talk.send((row(C, 1.0), row(C, 1.0), row(B, 1.0)))
    assert turn.moves == (Extend(ROOT, (B,)), Extend(DRAFT, (C, B)))
    assert turn.commits == (Commit(0, ROOT, 5),) and turn.note == "accepted 2 of 2"


def test_several_outputs_fork_on_both_models_and_draft_in_one_turn() -> None:
    talk = Assisted().run(
        context_of(draft=DRAFT_INFO, num_assistant_tokens=1, max_new_tokens=9, do_sample=True, num_return_sequences=3)
    )
    assert next(talk).asks == tuple(Sample(ROOT, output=index) for index in range(3))
    # Output 0 ends at once; the root waits for the others to leave it.
    ended = row(A, 0.5, "eos")
    turn = talk.send((ended, row(B, 0.5), row(C, 0.5)))
    assert turn.moves == (Fork(ROOT, 1), Fork(ROOT, 2), Extend(1, (B,)), Extend(2, (C,)))
    assert turn.asks == (Top(DRAFT, 1),), "the draft model reads the prompt once"
    assert turn.commits[0] == Commit(0, ROOT, 0, Hypothesis(ROOT, 0, ended.candidates[0], math.log(0.5)))
    turn = talk.send((row(B, 1.0),))
    assert turn.moves == (Fork(DRAFT, DRAFT - 1), Extend(DRAFT, (B,)), Extend(DRAFT - 1, (C,)))
    assert turn.asks == (Sample(DRAFT, output=1), Sample(DRAFT - 1, output=2))
    turn = talk.send((row(A, 1.0), row(A, 1.0)))
    assert turn.moves == (Extend(1, (A,)), Extend(2, (A,)))
    assert turn.asks == tuple(Sample(output, output=output, back=back) for output in (1, 2) for back in (1, 0))
    turn = talk.send((row(A, 1.0, "stop"), row(B, 1.0), row(C, 1.0), row(C, 1.0)))
    assert turn.note == "output 1: accepted 1 of 1; output 2: accepted 0 of 1"
    assert set(turn.moves) == {Drop(1), Drop(DRAFT), Keep(2, 1), Extend(2, (C,)), Extend(DRAFT - 1, (C,))}


# --- what is drafted ----------------------------------------------------------------------------------------------


def turns(context: Context, replies: Sequence[tuple[Row, ...]]) -> list[Turn]:
    talk = Assisted().run(context)
    return [next(talk), *(talk.send(reply) for reply in replies)]


def test_a_draft_ends_behind_an_unsure_token_and_before_one_that_ends_the_output() -> None:
    start = ((row(B, 1.0),),)
    options: dict[str, Any] = {"draft": DRAFT_INFO, "max_new_tokens": 20}
    unsure = turns(context_of(**options), (*start, (row(C, 0.5),), (row(B, 0.39),)))
    assert unsure[-1].moves == (Extend(ROOT, (C, B)),), "below the threshold of 0.4"
    sure = turns(context_of(**options, assistant_confidence_threshold=0.0), (*start, (row(C, 0.5),), (row(B, 0.001),)))
    assert sure[-1].asks == (Top(DRAFT, 1),), "0 is off"
    ended = turns(context_of(**options), (*start, (row(C, 1.0),), (row(B, 1.0, "eos"),)))
    assert ended[-1].moves == (Extend(ROOT, (C,)),)
    assert [ask.back for ask in ended[-1].asks] == [1, 0], "the model is asked about the place of the end anyway"
    foreign = turns(context_of(**options), (*start, (row(C, 1.0),), (row(7, 1.0),)))
    assert foreign[-1].moves == (Extend(ROOT, (C,)),), "the target has 3 tokens"
    nothing = turns(context_of(**options), (*start, (row(C, 1.0),), (Row((), -math.inf),)))
    assert nothing[-1].moves == (Extend(ROOT, (C,)),), "all that is allowed the draft model has not"


def test_sure_enough_is_at_least_the_threshold_renormalized() -> None:
    context = context_of(draft=DRAFT_INFO, max_new_tokens=20, assistant_confidence_threshold=1.0)
    exact = Row((Candidate(C, 2.0, -9.0, None),), 2.0)
    found = turns(context, ((row(B, 1.0),), (exact,), (Row((Candidate(B, 2.0, 0.0, None),), 2.01),)))
    assert [turn.asks[0].branch for turn in found] == [ROOT, DRAFT, DRAFT, ROOT]
    assert found[-1].moves == (Extend(ROOT, (C, B)),)


def test_an_output_that_the_draft_model_cannot_read_does_not_keep_others_from_drafting() -> None:
    draft = ModelInfo(name="draft", vocab_size=2)
    context = context_of(draft=draft, max_new_tokens=20, do_sample=True, num_return_sequences=2)
    turn = turns(context, ((row(C, 1.0), row(B, 1.0)),))[-1]
    assert turn.moves == (Fork(ROOT, 1), Extend(0, (C,)), Extend(1, (B,)), Extend(DRAFT, (B,)))
    assert turn.asks == (Sample(DRAFT, output=1),)


@pytest.mark.parametrize(
    ("schedule", "start", "holds", "sizes"),
    [
        ("heuristic", 2, (True, False, True, True), [2, 4, 3, 5]),
        ("heuristic_transient", 2, (True, False, True, True), [2, 4, 3, 5]),
        ("heuristic", 2, (False, False, False, True, True), [2, 1, 1, 1, 3]),
        ("constant", 2, (True, False, True, True), [2, 2, 2, 2]),
    ],
)
def test_the_schedule_follows_what_was_accepted(
    schedule: str, start: int, holds: tuple[bool, ...], sizes: list[int]
) -> None:
    context = context_of(
        draft=DRAFT_INFO, num_assistant_tokens=start, max_new_tokens=90, num_assistant_tokens_schedule=schedule
    )
    talk = Assisted().run(context)
    next(talk)
    turn = talk.send((row(B, 1.0),))
    found = []
    for each in holds:
        while turn.asks[0].branch == DRAFT:
            turn = talk.send((row(C, 1.0),))
        found.append(len(turn.asks) - 1)
        turn = talk.send((*(row(C if each else A, 1.0) for _ in turn.asks[1:]), row(B, 1.0)))
    assert found == sizes


# --- the output is that of plain decoding ---------------------------------------------------------------------------


def perturbed_toy(how: str) -> Callable[..., ToyRuntime]:
    """Return a maker of drafts: the model itself, one that is mostly right, or one that hardly ever is."""

    def make(vocab: int = VOCAB, **options: Any) -> ToyRuntime:
        model = mixing_toy(vocab, **options)
        inner = model._probabilities

        def probabilities(tokens: tuple[int, ...]) -> Sequence[float]:
            found = list(inner(tokens))
            if how == "hostile":
                return [1.0 / value for value in found]
            if how == "similar" and sum(tokens) % 4 == 0:
                found[sum(tokens[-3:]) % vocab] += 80.0
            return found

        model._probabilities = probabilities
        return model

    return make


def assisted(target: ToyRuntime, draft: ToyRuntime | None, prompt: Sequence[int], **options: Any) -> Any:
    """Run one request with a draft model, leaving nothing behind in either."""
    own = {"strategy": Assisted(), "assistant": draft} | options.pop("own", {})
    engine = Engine(target)
    number = engine.submit(request(prompt, own=own, **options))
    found = results(drain(engine))[number]
    assert not target.cached and not (draft and draft.cached), "sequences were left in a runtime"
    return found


def draw_drafting(rng: random.Random) -> dict[str, Any]:
    return {
        "num_assistant_tokens": rng.randint(1, 7),
        "num_assistant_tokens_schedule": rng.choice(("constant", "heuristic")),
        "assistant_confidence_threshold": rng.choice((0.0, 0.1, 0.4)),
    }


@pytest.mark.parametrize("how", ["same", "similar", "hostile"])
@pytest.mark.parametrize("number", sampled(range(1000, 1200), 20))
def test_the_output_is_that_of_plain_decoding_whatever_is_guessed(how: str, number: int) -> None:
    rng = random.Random(number)
    options, drafting = draw_options(rng), draw_drafting(rng)
    prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))]
    own = {"criteria": (EqualEnds(2),)} if rng.random() < 0.3 else {}
    plain = run_alone(mixing_toy, request(prompt, seed=number, own=own, **options))
    target, draft = mixing_toy(), perturbed_toy(how)()
    found = assisted(target, draft, prompt, seed=number, own=own, **options, **drafting)
    assert has_same_outputs(found, plain)
    assert len(target.passes) <= max(len(output.token_ids) for output in found)


@pytest.mark.parametrize("limits", [{"vocab": 9}, {"vocab": 25}, {"max_length": 7}, {"max_length": 12, "vocab": 14}])
def test_a_draft_model_that_cannot_go_on_leaves_the_output_to_the_target(limits: dict[str, int]) -> None:
    num_alone = 0
    for number in range(12):
        rng = random.Random(number)
        options, drafting = draw_options(rng), draw_drafting(rng)
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))]
        plain = run_alone(mixing_toy, request(prompt, seed=number, **options))
        target, draft = mixing_toy(), mixing_toy(**limits)
        found = assisted(target, draft, prompt, seed=number, **options, **drafting)
        assert has_same_outputs(found, plain), (number, options)
        num_alone += sum(map(len, target.passes)) > 0 and not draft.passes
    assert num_alone, "the draft model could always draft"


@pytest.mark.parametrize("outputs", [1, 3])
def test_a_draft_model_without_any_allowed_token_does_not_fail_the_request(outputs: int) -> None:
    """Whatever follows a token below 9 must be 9 or above, which the draft model has not."""
    banned = [[newest, token] for newest in range(9) if newest != 3 for token in range(9)]
    options: dict[str, Any] = {"bad_words_ids": banned, "do_sample": True, "num_return_sequences": outputs}
    for seed in range(5):
        plain = run_alone(mixing_toy, request([1, 2, 3], seed=seed, max_new_tokens=12, **options))
        found = assisted(mixing_toy(), mixing_toy(9), [1, 2, 3], seed=seed, max_new_tokens=12, **options)
        assert has_same_outputs(found, plain)


def test_requests_in_company_draft_in_one_pass_and_write_what_they_write_alone() -> None:
    wanted = []
    target, draft = mixing_toy(), perturbed_toy("similar")()
    for number in range(18):
        rng = random.Random(number)
        options = draw_options(rng) | {"max_new_tokens": 20}
        prompt = [rng.randrange(VOCAB) for _ in range(rng.randint(1, 6))]
        drafts = number % 3 > 0
        own = {"strategy": Assisted(), "assistant": draft} if drafts else {}
        wanted.append((request(prompt, seed=number, own=own, **options), request(prompt, seed=number, **options)))
    engine = Engine(target)
    numbers = [engine.submit(one) for one, _ in wanted]
    outcome = results(drain(engine))
    for number, (_, plain) in zip(numbers, wanted, strict=True):
        assert has_same_outputs(outcome[number], run_alone(mixing_toy, plain))
    assert not target.cached and not draft.cached
    assert max(map(len, draft.passes)) >= 12, "drafts of different requests share a pass"
    assert len(target.passes) <= 20


# --- what it costs --------------------------------------------------------------------------------------------------


def test_a_draft_that_is_always_right_saves_passes_and_is_fed_each_token_once() -> None:
    target, draft = mixing_toy(), mixing_toy()
    (output,) = assisted(
        target, draft, [1, 2, 3], num_assistant_tokens=4, num_assistant_tokens_schedule="constant",
        assistant_confidence_threshold=0.0, max_new_tokens=21, ignore_eos=True,
    )  # fmt: skip
    assert len(output.token_ids) == 21
    assert target.passes == [(3,), (5,), (5,), (5,), (5,)]
    assert draft.passes == [(4,), (1,), (1,), (1,), *[(2,), (1,), (1,), (1,)] * 3]


def test_sampling_with_the_model_as_its_own_draft_accepts_every_token() -> None:
    """Draft and target draw under the same noise, so equal distributions mean equal draws."""
    target, draft = mixing_toy(), mixing_toy()
    outputs = assisted(
        target, draft, [1, 2, 3], num_assistant_tokens=4, num_assistant_tokens_schedule="constant", seed=3,
        assistant_confidence_threshold=0.0, max_new_tokens=21, ignore_eos=True, do_sample=True, temperature=2.0,
        num_return_sequences=3,
    )  # fmt: skip
    assert len({output.token_ids for output in outputs}) == 3
    assert target.passes == [(3,), *[(5,) * 3] * 4]
    assert draft.passes[0] == (3,) and draft.passes[1] == (1,) * 3
    assert sum(map(sum, draft.passes)) == 3 + 3 * (4 + 3 * 5)


def test_a_draft_that_is_never_right_costs_no_pass_of_the_target() -> None:
    target, draft = mixing_toy(), perturbed_toy("hostile")()
    (output,) = assisted(
        target, draft, [1, 2, 3], num_assistant_tokens=3, assistant_confidence_threshold=0.0, max_new_tokens=12,
        ignore_eos=True,
    )  # fmt: skip
    assert len(output.token_ids) == len(target.passes) == 12
    # Drafts shrink from 3 to 1; for the first and the last token there are none.
    assert target.passes == [(3,), (4,), (3,), *[(2,)] * 8, (1,)]
    assert len(draft.passes) == 3 + 2 + 8


def test_a_draft_model_is_filled_to_its_last_token() -> None:
    target, draft = mixing_toy(), mixing_toy(max_length=8)
    longest = 0
    forward = draft.forward

    def watched(feeds: Any) -> Any:
        nonlocal longest
        rows = forward(feeds)
        longest = max(longest, *map(len, draft.cached.values()), 0)
        return rows

    draft.forward = watched  # type: ignore[method-assign]
    (output,) = assisted(
        target, draft, [1, 2, 3], num_assistant_tokens=20, assistant_confidence_threshold=0.0, max_new_tokens=21,
        ignore_eos=True,
    )  # fmt: skip
    assert longest == 8
    assert target.passes == [(3,), (6,), *[(1,)] * 14]
    assert len(output.token_ids) == 21


@pytest.mark.parametrize("longest", [1, 2])
def test_a_short_output_never_asks_the_draft_model(longest: int) -> None:
    target, draft = mixing_toy(), mixing_toy()
    outputs = assisted(target, draft, [1, 2, 3], max_new_tokens=longest, do_sample=True, num_return_sequences=2)
    assert [len(output.token_ids) for output in outputs] == [longest] * 2
    assert not draft.passes


def test_tokens_are_committed_as_they_are_verified() -> None:
    engine = Engine(mixing_toy())
    number = engine.submit(
        request(
            [1, 2, 3], own={"strategy": Assisted(), "assistant": mixing_toy()}, num_assistant_tokens=4,
            num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0, max_new_tokens=21,
            ignore_eos=True,
        )
    )  # fmt: skip
    events = drain(engine)
    commits = [event for event in events if isinstance(event, Committed)]
    assert [len(event.token_ids) for event in commits] == [1, 5, 5, 5, 5]
    (output,) = cast(Any, results(events)[number])
    assert tuple(token for event in commits for token in event.token_ids) == output.token_ids


# --- ends that come from outside ------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_steps", range(1, 8))
def test_a_cancelled_request_leaves_no_sequence_behind(num_steps: int) -> None:
    target, draft = mixing_toy(), perturbed_toy("similar")()
    engine = Engine(target)
    options: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 40, "ignore_eos": True}
    number = engine.submit(request([1, 2], own={"strategy": Assisted(), "assistant": draft}, **options))
    for _ in range(num_steps):
        engine.step()
        engine.check()
    assert target.cached
    engine.cancel(number)
    assert not target.cached and not draft.cached and engine.idle


@pytest.mark.parametrize("fails_at", [0, 1, 5, 9])
def test_a_draft_model_that_fails_fails_its_own_requests_alone(fails_at: int) -> None:
    target, draft = mixing_toy(), perturbed_toy("similar")()
    forward = draft.forward

    def failing(feeds: Any) -> Any:
        if len(draft.passes) == fails_at:
            raise RuntimeError("the draft broke")
        return forward(feeds)

    draft.forward = failing  # type: ignore[method-assign]
    engine = Engine(target)
    plain = engine.submit(request([4, 5], max_new_tokens=30, ignore_eos=True))
    broken = engine.submit(
        request([1, 2], own={"strategy": Assisted(), "assistant": draft}, max_new_tokens=30, ignore_eos=True)
    )
    events = drain(engine)
    assert isinstance(results(events)[plain], tuple)
    assert [event.request for event in events if isinstance(event, Failed)] == [broken]
    assert not target.cached and not draft.cached


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "draft", "message"),
    [
        (
            {"prompt_lookup_num_tokens": 3},
            DRAFT_INFO,
            "`prompt_lookup_num_tokens` cannot be used together with an assi",
        ),
        ({}, None, "`strategy` needs `prompt_lookup_num_tokens` or `assistant_model`"),
        ({"num_return_sequences": 2}, DRAFT_INFO, "`num_return_sequences` must be 1 without sampling"),
    ],
)
def test_options_that_cannot_be_honored_are_refused(options: Any, draft: ModelInfo | None, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        next(Assisted().run(context_of(draft=draft, max_new_tokens=5, **options)))


def test_each_output_may_hold_a_branch_on_each_model() -> None:
    config = resolve({"do_sample": True, "num_return_sequences": 4}, None, GenerationConfig())
    assert Assisted().max_branches(config) == 4


def test_the_drill_covers_what_it_is_for() -> None:
    drawn = [draw_options(random.Random(number)) for number in sampled(range(1000, 1200), 20)]
    names = set().union(*drawn)
    assert names >= {
        "repetition_penalty",
        "no_repeat_ngram_size",
        "min_new_tokens",
        "bad_words_ids",
        "top_p",
        "logprobs",
    }
    lengths = {options["max_new_tokens"] for options in drawn}
    assert min(lengths) <= 2 and max(lengths) >= 20
    assert sum(bool(options.get("do_sample")) for options in drawn) in range(8, 160)
    ends = EqualEnds(2)
    assert any(ends.ends((a, 1), b) for a, b in pairwise((3, 3)))

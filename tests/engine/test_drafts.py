"""The engine's side of draft branches: shared passes, several draft models, their sizes, limits and other engines."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from tests.tiny_models import tiny_model
from tests.toys import Scripted, drain, mixing_toy, request, results, run_alone
from unspool import LanguageModel
from unspool.engine import Engine
from unspool.errors import CapacityError, PromptError, StrategyError
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.toy import ToyRuntime
from unspool.types import DRAFT, ROOT, Drop, Event, Extend, Feed, Fork, Hypothesis, Keep, Output, Rows, Score, Top, Turn

SURE: dict[str, Any] = {
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.0,
    "ignore_eos": True,
}


def near_toy(vocab: int = 17, *, bump: int = 3, **limits: Any) -> ToyRuntime:
    """A draft of `mixing_toy()` that is mostly right, over a vocabulary that may be wider or narrower."""
    model = mixing_toy()._probabilities

    def probabilities(tokens: tuple[int, ...]) -> Sequence[float]:
        found = [*model(tokens), *[40.0] * vocab][:vocab]
        found[sum(tokens) % vocab] += 90.0 * (sum(tokens) % bump == 0)
        return found

    return ToyRuntime(probabilities, vocab, **limits)


def plain(prompt: Sequence[int], **options: Any) -> tuple[Output, ...]:
    options = {name: value for name, value in options.items() if "assistant" not in name}
    found = run_alone(mixing_toy, request(prompt, **options))
    assert isinstance(found, tuple), found
    return found


def tokens_of(outputs: Any) -> list[tuple[tuple[int, ...], str]]:
    assert isinstance(outputs, tuple), outputs
    return [(output.token_ids, output.finish_reason) for output in outputs]


def run_together(model: ToyRuntime, wanted: Sequence[Any], *drafts: ToyRuntime, **engine_options: Any) -> list[Any]:
    engine = Engine(model, **engine_options)
    numbers = [engine.submit(each) for each in wanted]
    found = results(drain(engine))
    assert engine.idle and not any(each.cached for each in (model, *drafts)), "sequences were left"
    return [found[number] for number in numbers]


# --- passes -------------------------------------------------------------------------------------------------------


def test_the_drafts_of_all_requests_share_a_pass() -> None:
    model, draft = mixing_toy(), mixing_toy()
    options = SURE | {"max_new_tokens": 13}
    wanted = [request([number, 2], own={"assistant": draft}, **options) for number in range(6)]
    found = run_together(model, wanted, draft)
    for number, outputs in enumerate(found):
        assert tokens_of(outputs) == tokens_of(plain([number, 2], **options))
    # Each round: the two tokens that the draft lacks, then its own guesses one by one.
    assert draft.passes == [(3,) * 6, (1,) * 6, (1,) * 6, *[(2,) * 6, (1,) * 6, (1,) * 6] * 2]
    assert model.passes == [(2,) * 6, (4,) * 6, (4,) * 6, (4,) * 6]


def test_drafts_keep_nobody_waiting() -> None:
    """A request without a draft takes a pass a token, whatever others draft meanwhile."""
    model, draft = mixing_toy(), near_toy()
    engine = Engine(model)
    engine.submit(request([1, 2], own={"assistant": draft}, **SURE, max_new_tokens=40))
    calm = engine.submit(request([3, 4], max_new_tokens=12, ignore_eos=True))
    for step in range(12):
        assert any(event.request == calm for event in engine.step()), step
    assert engine.timing.passes == 12


def test_prompts_of_drafts_go_in_chunks_too() -> None:
    model, draft = mixing_toy(), near_toy()
    prompt = [n % 13 for n in range(30)]
    options = SURE | {"max_new_tokens": 12}
    wanted = [request([n, *prompt], own={"assistant": draft}, **options) for n in range(3)]
    found = run_together(model, wanted, draft, max_batch_tokens=7)
    assert max(sum(each) for each in draft.passes) <= 7 + 3 * 2
    for n, outputs in enumerate(found):
        assert tokens_of(outputs) == tokens_of(plain([n, *prompt], **options))


# --- several draft models, and their sizes -------------------------------------------------------------------------


def test_two_draft_models_serve_one_engine() -> None:
    model, wide, narrow = mixing_toy(), near_toy(25), near_toy(13, bump=2)
    drafts = (wide, narrow, None)
    options = SURE | {"max_new_tokens": 20}
    wanted = []
    for number in range(9):
        draft = drafts[number % 3]
        sampling = {"do_sample": True, "num_return_sequences": 2} if number % 2 else {}
        own, drafting = ({"assistant": draft}, options) if draft else ({}, {"ignore_eos": True, "max_new_tokens": 20})
        wanted.append(request([number, 5], seed=number, own=own, **drafting, **sampling))
    for each, outputs in zip(wanted, run_together(model, wanted, wide, narrow), strict=True):
        sampling = {"do_sample": True, "num_return_sequences": 2} if each.config.do_sample else {}
        expected = plain(each.prompt, seed=each.seed, ignore_eos=True, max_new_tokens=20, **sampling)
        assert tokens_of(outputs) == tokens_of(expected)
    assert wide.passes and narrow.passes
    assert len(model.passes) <= 20


@pytest.mark.parametrize("vocab", [13, 17, 25])
def test_a_drafts_rows_have_the_models_width(vocab: int) -> None:
    """What a narrower draft lacks is impossible to it, and what a wider one has besides is left out and not asked."""
    draft = near_toy(vocab)
    talk = Scripted(
        [
            Turn(asks=(Top(DRAFT, 30), Score(DRAFT, (3, 16)))),
            Turn(moves=(Extend(DRAFT, (4,)),), asks=(Top(DRAFT, 1),)),
            Turn(asks=(Top(ROOT, 30),)),
        ],
        [Hypothesis(ROOT, 0, None, 0.0)],
    )
    engine = Engine(mixing_toy())
    number = engine.submit(request([1, 2], own={"strategy": talk, "assistant": draft}, max_new_tokens=5))
    assert isinstance(results(drain(engine))[number], tuple)
    (best, named), _, (own,) = talk.heard
    assert len(best.candidates) == min(vocab, 17) and len(own.candidates) == 17
    assert sum(math.exp(each.logprob) for each in best.candidates) == pytest.approx(1.0)
    assert (named.candidates[1].logprob == -math.inf) is (vocab < 17)
    row = near_toy(vocab)._probabilities((1, 2))[:17]
    assert named.candidates[0].logprob == pytest.approx(math.log(row[3] / sum(row)), abs=1e-5)


@pytest.mark.parametrize("vocab_size", [80, 97, 128])
@pytest.mark.parametrize("sampling", [{}, {"do_sample": True, "num_return_sequences": 3}])
def test_real_models_of_different_padding(vocab_size: int, sampling: dict[str, Any]) -> None:
    model = DecoderRuntime(tiny_model("llama"), owns_model=True)
    draft = DecoderRuntime(tiny_model("gpt2", vocab_size=vocab_size), owns_model=True)
    options = {"max_new_tokens": 12, "batch_invariant": True, "ignore_eos": True, "seed": 3} | sampling
    engine = Engine(model)
    drafted = engine.submit(request([5, 7, 9], own={"assistant": draft}, **SURE | options))
    alone = engine.submit(request([5, 7, 9], **options))
    found = results(drain(engine))
    assert tokens_of(found[drafted]) == tokens_of(found[alone])
    assert engine.timing.draft_passes > 0
    for runtime in (model, draft):
        runtime.check()
        assert not runtime._slots.live


def test_a_token_that_the_draft_has_not_cannot_be_written_on_it() -> None:
    talk = Scripted([Turn(moves=(Extend(DRAFT, (16,)),), asks=(Top(DRAFT, 1),))])
    engine = Engine(mixing_toy())
    number = engine.submit(request([1], own={"strategy": talk, "assistant": near_toy(13)}, max_new_tokens=5))
    error = results(drain(engine))[number]
    assert isinstance(error, StrategyError) and "outside the vocabulary" in str(error)


# --- lengths and room ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("longest", [4, 5, 9, 40])
def test_a_short_draft_model_helps_as_far_as_it_goes(longest: int) -> None:
    model, draft = mixing_toy(), near_toy(max_length=longest)
    options = SURE | {"max_new_tokens": 20}
    most = 0
    forward = draft.forward

    def watched(feeds: Sequence[Feed]) -> Rows:
        nonlocal most
        rows = forward(feeds)
        most = max(most, *map(len, draft.cached.values()))
        return rows

    draft.forward = watched  # type: ignore[method-assign]
    (found,) = run_together(model, [request([1, 2, 3], own={"assistant": draft}, **options)], draft)
    assert tokens_of(found) == tokens_of(plain([1, 2, 3], **options))
    assert 0 < most <= longest


def test_a_prompt_that_fills_the_draft_model_is_refused_at_the_door() -> None:
    engine = Engine(mixing_toy())
    with pytest.raises(PromptError, match="3 tokens and the draft model toy holds 3 in all"):
        engine.submit(request([1, 2, 3], own={"assistant": near_toy(max_length=3)}, max_new_tokens=5))
    assert engine.idle


@pytest.mark.parametrize("limits", [{"max_sequences": 2}, {"max_tokens": 40}])
def test_requests_wait_for_room_on_the_draft(limits: dict[str, int]) -> None:
    model, draft = mixing_toy(), near_toy(**limits)
    options = SURE | {"max_new_tokens": 15}
    engine = Engine(model)
    numbers = [engine.submit(request([n, 3], own={"assistant": draft}, **options)) for n in range(5)]
    behind = engine.submit(request([9], max_new_tokens=2))
    events: list[Event] = []
    most = 0
    while not engine.idle:
        events += engine.step()
        engine.check()
        most = max(most, len(draft.cached))
        assert sum(map(len, draft.cached.values())) <= limits.get("max_tokens", 1000)
    assert most == 2 and not draft.cached and not model.cached
    found = results(events)
    for n, number in enumerate(numbers):
        assert tokens_of(found[number]) == tokens_of(plain([n, 3], **options))
    over = [event.request for event in events if event.request in found and type(event).__name__ == "Finished"]
    assert over.index(behind) >= 2, "first come, first served"


@pytest.mark.parametrize(
    ("limits", "options"),
    [
        ({"max_sequences": 2}, {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 5}),
        ({"max_tokens": 20}, {"max_new_tokens": 30}),
    ],
)
def test_what_the_draft_can_never_hold_is_refused_at_the_door(limits: dict[str, int], options: dict[str, Any]) -> None:
    engine = Engine(mixing_toy())
    with pytest.raises(CapacityError, match="toy"):
        engine.submit(request([1, 2], own={"assistant": near_toy(**limits)}, **options))
    assert engine.idle


def test_a_model_may_be_its_own_draft() -> None:
    """On one runtime with itself: the same tokens, and the other requests are told of theirs step by step."""
    model = mixing_toy()
    engine = Engine(model)
    options = SURE | {"max_new_tokens": 20}
    own = engine.submit(request([1, 2], own={"assistant": model}, **options))
    calm = engine.submit(request([3, 4], max_new_tokens=20, ignore_eos=True))
    first = engine.step()
    events = [*first, *drain(engine)]
    assert tokens_of(results(events)[own]) == tokens_of(plain([1, 2], **options))
    assert tokens_of(results(events)[calm]) == tokens_of(plain([3, 4], max_new_tokens=20, ignore_eos=True))
    assert not model.cached
    assert len([event for event in first if event.request == calm]) == 1, (
        "a step is one token to a request that does not draft"
    )


def test_two_engines_share_the_room_of_one_draft_model() -> None:
    """Each waits for what the other has reserved."""
    draft = near_toy(max_sequences=1)
    engines = [Engine(mixing_toy()) for _ in range(2)]
    for engine in engines:
        engine.submit(request([1, 2], own={"assistant": draft}, **SURE, max_new_tokens=9))
    for _ in range(40):
        for engine in engines:
            engine.step()
            assert len(draft.cached) <= 1
    assert all(engine.idle for engine in engines)


# --- what a strategy may say --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([Turn(asks=(Top(ROOT, 1), Top(DRAFT, 1)))], "not about both"),
        ([Turn(asks=(Top(DRAFT, 1), Top(ROOT, 1)))], "not about both"),
        (
            [Turn(asks=(Top(DRAFT, 1),)), Turn(moves=(Fork(DRAFT, 5),), asks=(Top(5, 1), Top(ROOT, 1)))],
            "not about both",
        ),
        ([Turn(moves=(Drop(DRAFT),), asks=(Top(DRAFT, 1),))], "branch -1 is not alive"),
        ([Turn(moves=(Fork(DRAFT, -2), Fork(DRAFT, -3)), asks=(Top(-3, 1),))], "more than the 2 branches"),
        ([Turn(moves=(Keep(DRAFT, 1),), asks=(Top(DRAFT, 1),))], "cannot keep 1"),
    ],
)
def test_a_slip_about_drafts_is_called_by_its_name(turns: list[Turn], message: str) -> None:
    model, draft = mixing_toy(), mixing_toy()
    own = {"strategy": Scripted(turns, branches=2), "assistant": draft}
    good = {"assistant": draft}
    bad, fine = run_together(
        model, [request([1], own=own, max_new_tokens=5), request([1], own=good, **SURE, max_new_tokens=5)], draft
    )
    assert isinstance(bad, StrategyError) and message in str(bad)
    assert tokens_of(fine) == tokens_of(plain([1], max_new_tokens=5, ignore_eos=True))


def test_without_a_draft_model_there_is_no_draft_branch() -> None:
    (error,) = run_together(mixing_toy(), [request([1], own={"strategy": Scripted([Turn(asks=(Top(DRAFT, 1),))])})])
    assert isinstance(error, StrategyError) and "branch -1 is not alive" in str(error)


# --- a draft model at work elsewhere ------------------------------------------------------------------------------


def toy_pair() -> tuple[Any, Any]:
    return mixing_toy(), near_toy()


def real_pair() -> tuple[Any, Any]:
    model, draft = (DecoderRuntime(tiny_model("llama"), owns_model=True) for _ in range(2))
    return model, draft


@pytest.mark.parametrize("make", [toy_pair, real_pair])
def test_a_draft_model_writes_for_others_meanwhile(make: Callable[[], tuple[Any, Any]]) -> None:
    """It has an engine of its own, in another thread."""
    target, draft = make()
    lm, small = LanguageModel(target), LanguageModel(draft)
    options: dict[str, Any] = {"max_new_tokens": 25, "ignore_eos": True}
    expected = [lm.generate([n, 2], **options).completions[0].token_ids for n in range(4)]
    elsewhere = small.generate([7, 7, 7], num_beams=3, **options).completions[0].token_ids
    stop = threading.Event()
    found: list[Any] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            while not stop.is_set() or not found:
                found.append(small.generate([7, 7, 7], num_beams=3, **options).completions[0].token_ids)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(3):
            drafted = lm.generate([[n, 2] for n in range(4)], assistant_model=small, **options)
            assert [each.completions[0].token_ids for each in drafted] == expected
    finally:
        stop.set()
        thread.join(60)
    assert not thread.is_alive() and not errors
    assert found and all(each == elsewhere for each in found)
    assert lm.engine.timing.draft_passes > 0
    for runtime in (target, draft):
        assert not (runtime.cached if isinstance(runtime, ToyRuntime) else runtime._slots.live)

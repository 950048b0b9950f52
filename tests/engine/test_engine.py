"""The engine's promises: same answer alone or in company, failures stay at home, nothing is left behind."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.toys import END, TABLE, Scripted, SmallBeam, drain, mixing_toy, request, results, run_alone, toy
from unspool.engine import Engine, Request
from unspool.errors import CapacityError, NumericsError, OptionError, PromptError, StrategyError
from unspool.protocols import RowKey
from unspool.runtimes.toy import ToyRuntime
from unspool.types import (
    ROOT,
    Commit,
    Committed,
    Drop,
    Extend,
    Feed,
    Fork,
    FullDistribution,
    Hypothesis,
    Keep,
    Rows,
    Score,
    Top,
    Turn,
)


def mixed_requests() -> list[Request]:
    return [
        request([1, 2, 3], max_new_tokens=9),
        request([4], temperature=1.3, seed=5, max_new_tokens=12),
        request([5, 6, 7, 8, 9, 1, 2], do_sample=True, top_k=4, num_return_sequences=3, seed=6, max_new_tokens=7),
        request([2, 2], repetition_penalty=1.7, no_repeat_ngram_size=2, max_new_tokens=11),
        request([3, 1, 4, 1, 5], top_p=0.7, frequency_penalty=0.5, seed=7, max_new_tokens=8, logprobs=3),
        request([9, 9], own={"strategy": SmallBeam(3)}, max_new_tokens=5),
        request([7, 9, 1], num_beams=3, num_return_sequences=2, no_repeat_ngram_size=2, max_new_tokens=9),
        request([7, 1], num_beams=3, do_sample=True, top_k=6, num_return_sequences=3, seed=2, max_new_tokens=6),
        request([8, 8], num_beams=4, early_stopping="never", length_penalty=0.3, max_new_tokens=7),
        request([1], temperature=0.7, min_p=0.1, seed=8, max_new_tokens=6, batch_invariant=True),
        request([6, 5, 4], do_sample=True, seed=9, max_new_tokens=6, xtc_probability=0.5),
    ]


@pytest.mark.parametrize("trial", range(8))
def test_each_request_gets_in_company_and_in_any_order_what_it_gets_alone(trial: int) -> None:
    alone = [run_alone(mixing_toy, each) for each in mixed_requests()]
    order = list(range(len(alone)))
    random.Random(trial).shuffle(order)
    runtime = mixing_toy(max_sequences=4 if trial % 2 else None)
    engine = Engine(runtime, max_batch_tokens=1 + trial * 3)
    events, numbers = [], {}
    for index in order:
        numbers[engine.submit(mixed_requests()[index])] = index
        events += engine.step() if trial % 3 else []
    found = results(events + drain(engine))
    assert {numbers[number]: outcome for number, outcome in found.items()} == dict(enumerate(alone))
    assert not runtime.cached


@pytest.mark.parametrize("victim", range(len(mixed_requests())))
def test_any_request_can_be_cancelled_at_any_step_without_harm_to_the_others(victim: int) -> None:
    alone = [run_alone(mixing_toy, each) for each in mixed_requests()]
    for step in range(0, 9, 2):
        runtime = mixing_toy()
        engine = Engine(runtime)
        numbers = [engine.submit(each) for each in mixed_requests()]
        events = [event for _ in range(step) for event in engine.step()]
        engine.cancel(numbers[victim])
        engine.check()
        found = results(events + drain(engine))
        for index, number in enumerate(numbers):
            assert found.get(number, alone[index]) == alone[index]
        assert not runtime.cached


def test_more_outputs_leave_the_first_ones_as_they_were() -> None:
    one = run_alone(mixing_toy, request([1, 2], do_sample=True, seed=3, max_new_tokens=8))
    five = run_alone(mixing_toy, request([1, 2], do_sample=True, seed=3, max_new_tokens=8, num_return_sequences=5))
    assert isinstance(one, tuple) and isinstance(five, tuple)
    assert five[0] == one[0]
    assert len({output.token_ids for output in five}) > 1


def test_a_users_own_beam_search_is_exact_at_full_width() -> None:
    """Brute force over all sequences of at most three tokens."""
    best: dict[tuple[int, ...], float] = {}
    for length in (1, 2, 3):
        for tokens in itertools.product(range(4), repeat=length):
            if END in tokens[:-1] or (length < 3 and tokens[-1] != END):
                continue
            path = [0, *tokens]
            p = math.prod(TABLE[a][b] for a, b in itertools.pairwise(path))
            if p > 0:
                best[tokens] = math.log(p)
    expected = sorted(best, key=lambda tokens: -best[tokens])
    found = run_alone(toy, request([0], own={"strategy": SmallBeam(16)}, max_new_tokens=3))
    assert isinstance(found, tuple)
    assert found[0].token_ids == expected[0]
    assert {output.token_ids: pytest.approx(output.score, abs=1e-5) for output in found} == best
    for output in found:
        assert sum(output.logprobs) == pytest.approx(output.score, abs=1e-5)


def test_streamed_commits_are_the_output() -> None:
    engine = Engine(mixing_toy())
    numbers = [engine.submit(each) for each in mixed_requests()]
    events = drain(engine)
    found = results(events)
    for number in numbers:
        outputs = found[number]
        assert isinstance(outputs, tuple)
        for index, output in enumerate(outputs):
            mine = [e for e in events if isinstance(e, Committed) and (e.request, e.output) == (number, index)]
            assert tuple(t for e in mine for t in e.token_ids) == output.token_ids
            assert tuple(p for e in mine for p in e.logprobs) == output.logprobs
            assert [e.finish_reason for e in mine][-1] == output.finish_reason
            assert all(e.finish_reason is None for e in mine[:-1])


def test_prompts_go_in_chunks_under_the_budget_and_writers_go_on_meanwhile() -> None:
    runtime = mixing_toy()
    engine = Engine(runtime, max_batch_tokens=4)
    engine.submit(request([1], max_new_tokens=6))
    engine.step()
    engine.submit(request([2] * 9, max_new_tokens=2))
    drain(engine)
    assert runtime.passes[:5] == [(1,), (1, 3), (1, 3), (1, 3), (1, 1)]


@pytest.mark.parametrize("invariant", [False, True])
def test_prompts_get_their_share_while_others_write(invariant: bool) -> None:
    """A long prompt, and what comes behind it, once waited until all writers were done."""
    runtime = mixing_toy()
    engine = Engine(runtime, max_batch_tokens=4)
    writers = [engine.submit(request([1], max_new_tokens=200, ignore_eos=True)) for _ in range(4)]
    for _ in range(3):
        engine.step()
    late = [
        engine.submit(request([2] * 9, max_new_tokens=1, batch_invariant=invariant)),
        engine.submit(request([3], max_new_tokens=1)),
    ]
    found = results([event for _ in range(15) for event in engine.step()])
    assert set(late) <= found.keys() and not set(writers) & found.keys()


def test_no_prompt_overtakes_one_that_goes_whole_and_has_no_room_in_this_pass() -> None:
    runtime = mixing_toy()
    engine = Engine(runtime, max_batch_tokens=10)
    for prompt, invariant in (([1] * 6, True), ([2] * 6, True), ([3], False), ([4] * 20, False)):
        engine.submit(request(prompt, max_new_tokens=1, batch_invariant=invariant))
    drain(engine)
    assert runtime.passes == [(6,), (6, 1, 3), (10,), (7,)]


@pytest.mark.parametrize("given", [0, -3, 1.5, True, "512"])
def test_a_budget_that_could_never_be_met_is_refused(given: Any) -> None:
    with pytest.raises(OptionError, match="`max_batch_tokens` must be an integer of at least 1"):
        Engine(toy(), max_batch_tokens=given)


class Untidy(Scripted):
    """A strategy that raises while it cleans up."""

    def run(self, context: Any) -> Any:
        try:
            yield Turn(asks=(Top(ROOT, 1),))
            yield Turn(moves=(Extend(ROOT, (99,)),), asks=(Top(ROOT, 1),))
        finally:
            raise ValueError("untidy")


def test_a_strategy_that_raises_while_it_cleans_up_harms_nobody() -> None:
    runtime = mixing_toy()
    engine = Engine(runtime)
    bad = engine.submit(request([1], own={"strategy": Untidy([])}))
    other = engine.submit(request([1], own={"strategy": Untidy([])}))
    good = engine.submit(request([1], max_new_tokens=5))
    events = engine.step()
    engine.cancel(other)
    found = results(events + drain(engine))
    assert isinstance(found[bad], Exception)
    assert found[good] == run_alone(mixing_toy, request([1], max_new_tokens=5))
    assert not runtime.cached


@pytest.mark.parametrize(
    ("turns", "outcome", "message"),
    [
        (["no turn"], [], "yields Turns"),
        ([Turn(moves=("jump",), asks=(Top(ROOT, 1),))], [], "a move must be Drop, Keep, Fork or Extend, got 'jump'"),  # type: ignore[arg-type]
        ([Turn(asks=(Top(ROOT, 1.5),))], [], "k must be at least 1"),  # type: ignore[arg-type]
        ([Turn(asks=(Score(ROOT, (4,)),))], [], "outside the vocabulary"),
        ([Turn(asks=(Top(ROOT, 1),), commits=(Commit(0, 9, 0),))], [], "branch 9 does not exist"),
        ([Turn(asks=(Top(ROOT, 1),))], [Hypothesis(ROOT, 3, None, 0.0)], "branch 0 has 0 tokens"),
        ([Turn(asks=(Top(ROOT, 1),))], ["best"], "returns a list of Hypotheses"),
    ],
)
def test_a_strategys_slip_is_called_by_its_name(turns: Any, outcome: Any, message: str) -> None:
    engine = Engine(toy())
    number = engine.submit(request([0], own={"strategy": Scripted(turns, outcome)}))
    error = results(drain(engine))[number]
    assert isinstance(error, StrategyError) and message in str(error)


def test_a_strategy_that_yields_nothing_is_refused() -> None:
    strategy = Scripted([], [])
    strategy.run = lambda context: []  # type: ignore[method-assign,assignment,return-value]
    engine = Engine(toy())
    number = engine.submit(request([0], own={"strategy": strategy}))
    error = results(drain(engine))[number]
    assert isinstance(error, StrategyError) and "`run` must be a generator, which yields Turns; got []" in str(error)


def test_one_forward_a_token_and_none_after_the_last() -> None:
    runtime = toy()
    engine = Engine(runtime)
    engine.submit(request([0, 1, 0], max_new_tokens=2))
    drain(engine)
    assert runtime.passes == [(3,), (1,)]


def test_requests_wait_for_memory_and_one_that_never_fits_is_refused() -> None:
    runtime = toy(max_tokens=20, max_sequences=2)
    engine = Engine(runtime)
    with pytest.raises(CapacityError, match="cache of 21 tokens.*limit of toy is 20.*max_cache_tokens"):
        engine.submit(request([0], max_new_tokens=20))
    with pytest.raises(CapacityError, match="3 sequences.*at most 2"):
        engine.submit(request([0], do_sample=True, num_return_sequences=3, max_new_tokens=2))
    for _ in range(5):
        engine.submit(request([0], max_new_tokens=9))
    most = 0
    while not engine.idle:
        engine.step()
        engine.check()
        most = max(most, len(runtime.cached))
    assert most == 2


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "no token"), ([4], "token 0 is 4, outside the vocabulary of 4"), ([0, -1], "token 1 is -1")],
)
def test_bad_prompts_are_refused_before_anything_is_queued(prompt: list[int], message: str) -> None:
    engine = Engine(toy())
    with pytest.raises(PromptError, match=message):
        engine.submit(request(prompt))
    assert engine.idle


def test_the_models_length_ends_a_text_cleanly_and_a_prompt_that_fills_it_is_refused() -> None:
    runtime = mixing_toy(max_length=10)
    engine = Engine(runtime)
    number = engine.submit(request([1, 2, 3, 4], ignore_eos=True))
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple)
    assert (len(outputs[0].token_ids), outputs[0].finish_reason) == (6, "length")
    with pytest.raises(PromptError, match="10 tokens and toy holds 10"):
        engine.submit(request([1] * 10))


@pytest.mark.parametrize("option", ["suppress_tokens", "begin_suppress_tokens", "eos_token_id"])
def test_token_ids_the_model_has_not_are_refused_by_name(option: str) -> None:
    with pytest.raises(OptionError) as caught:
        Engine(toy()).submit(request([0], **{option: [4]}))
    assert caught.value.option == option


class FailingRuntime(ToyRuntime):
    """Raises when a feed holds the token 13."""

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        if any(13 in feed.tokens for feed in feeds):
            raise RuntimeError("unlucky")
        return super().forward(feeds)


def test_a_failing_forward_fails_the_guilty_request_alone() -> None:
    runtime = mixing_toy()
    failing = FailingRuntime(runtime._probabilities, 17, eos_token_ids=(16,))
    engine = Engine(failing)
    good = [engine.submit(request([n], max_new_tokens=6, suppress_tokens=[13])) for n in range(7)]
    bad = engine.submit(request([1, 13], max_new_tokens=6))
    found = results(drain(engine))
    assert isinstance(found[bad], RuntimeError)
    for n, number in enumerate(good):
        assert found[number] == run_alone(mixing_toy, request([n], max_new_tokens=6, suppress_tokens=[13]))
    assert not failing.cached


def test_nan_raises_and_names_branch_and_position() -> None:
    runtime = ToyRuntime({0: [0.5, 0.5], 1: [math.nan, 1.0]}, 2)
    engine = Engine(runtime)
    bad = engine.submit(request([0, 1], max_new_tokens=3))
    good = engine.submit(request([0], max_new_tokens=3, suppress_tokens=[1]))
    found = results(drain(engine))
    error = found[bad]
    assert isinstance(error, NumericsError) and (error.branch, error.position) == (0, 2)
    assert "NaN" in str(error)
    assert isinstance(found[good], tuple)


def test_a_row_where_everything_is_forbidden_raises() -> None:
    engine = Engine(toy())
    number = engine.submit(request([0], suppress_tokens=[0, 1, 2, 3]))
    error = results(drain(engine))[number]
    assert isinstance(error, NumericsError) and "every token is forbidden" in str(error)


class Exploding:
    """A processor of a user's own that breaks at its third token."""

    name = "exploding"

    def start(self, context: Any) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + 1

    def fork(self, state: int) -> int:
        return state

    def apply(self, states: Sequence[int], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        if max(states) == 2:
            raise ZeroDivisionError("mine")
        return scores


def test_a_users_failing_processor_fails_its_owner_alone() -> None:
    engine = Engine(mixing_toy())
    bad = engine.submit(request([1], own={"processors": (Exploding(),)}, max_new_tokens=6))
    good = engine.submit(request([1], max_new_tokens=6))
    found = results(drain(engine))
    assert isinstance(found[bad], ZeroDivisionError)
    assert found[good] == run_alone(mixing_toy, request([1], max_new_tokens=6))


LAST = Hypothesis(ROOT, 0, None, 0.0)


@pytest.mark.parametrize(
    ("turns", "message"),
    [
        ([Turn()], "must ask something"),
        ([Turn(asks=(Top(7, 1),))], "branch 7 is not alive"),
        ([Turn(asks=(Top(ROOT, 0),))], "k must be at least 1"),
        ([Turn(asks=(FullDistribution(ROOT, back=1),))], "about positions inside the prompt"),
        ([Turn(asks=(Score(ROOT, (1,), back=2),))], "lacks that position"),
        ([Turn(asks=(Top(ROOT, 1),)), Turn(moves=(Extend(ROOT, (99,)),), asks=(Top(ROOT, 1),))], "outside the vocab"),
        ([Turn(asks=(Top(ROOT, 1),)), Turn(moves=(Drop(ROOT),), asks=(Top(ROOT, 1),))], "not alive"),
        ([Turn(moves=(Fork(ROOT, ROOT),), asks=(Top(ROOT, 1),))], "was used before"),
        ([Turn(moves=tuple(Fork(ROOT, n) for n in range(1, 6)), asks=(Top(ROOT, 1),))], "more than the 4 branches"),
        ([Turn(asks=(Top(ROOT, 1),)), Turn(moves=(Keep(ROOT, 1),), asks=(Top(ROOT, 1),))], "cannot keep 1"),
        ([Turn(moves=(Extend(ROOT, (1,) * 300),), asks=(Top(ROOT, 1),))], "longer than 256"),
        (
            [
                Turn(moves=(Extend(ROOT, (1,)),), asks=(Top(ROOT, 1),), commits=(Commit(0, ROOT, 1),)),
                Turn(moves=(Keep(ROOT, 0),), asks=(Top(ROOT, 1),), commits=(Commit(0, ROOT, 0),)),
            ],
            "committed have changed",
        ),
    ],
)
def test_a_strategy_that_breaks_the_rules_fails_with_the_rule(turns: list[Turn], message: str) -> None:
    runtime = toy()
    engine = Engine(runtime)
    number = engine.submit(request([0, 1], own={"strategy": Scripted(turns, [LAST])}))
    error = results(drain(engine))[number]
    assert isinstance(error, StrategyError) and message in str(error)
    assert not runtime.cached


def test_verification_asks_at_several_positions_and_keeps_what_was_right() -> None:
    """What speculative decoding needs: many tokens at once, rows for each, then only the first of them stay."""
    runtime = mixing_toy()
    plain = run_alone(mixing_toy, request([1, 2], repetition_penalty=1.5, max_new_tokens=6))
    assert isinstance(plain, tuple)
    right = plain[0].token_ids
    wrong = tuple((token + 1) % 16 for token in right[3:5])
    script = Scripted(
        [
            Turn(asks=(Top(ROOT, 1),)),
            Turn(moves=(Extend(ROOT, right[:3] + wrong),), asks=tuple(Top(ROOT, 1, back=n) for n in range(4, -1, -1))),
            Turn(moves=(Keep(ROOT, 3),), asks=(Top(ROOT, 1),)),
            Turn(moves=(Extend(ROOT, right[3:5]),), asks=(Top(ROOT, 1, back=1), Top(ROOT, 1))),
        ],
        [Hypothesis(ROOT, 5, None, 0.0)],
    )
    engine = Engine(runtime)
    number = engine.submit(request([1, 2], repetition_penalty=1.5, max_new_tokens=6, own={"strategy": script}))
    outputs = results(drain(engine))[number]
    first, verified, kept, rest = ([row.candidates[0].token for row in reply] for reply in script.heard)
    assert first == [right[0]]
    assert verified[:3] == list(right[1:4])
    assert kept == [right[3]]
    assert rest == list(right[4:6])
    assert runtime.passes == [(2,), (5,), (2,)]
    assert isinstance(outputs, tuple)
    assert outputs[0].logprobs == pytest.approx(plain[0].logprobs[:5], abs=1e-6)


def test_a_turn_without_moves_asks_again_without_a_forward() -> None:
    runtime = toy()
    script = Scripted(
        [Turn(asks=(Top(ROOT, 1),)), Turn(asks=(Top(ROOT, 3), Score(ROOT, (2,)), FullDistribution(ROOT)))]
    )
    engine = Engine(runtime)
    engine.submit(request([0], own={"strategy": script}))
    drain(engine)
    again = script.heard[1]
    assert [candidate.token for candidate in again[0].candidates] == [1, 2]
    assert again[1].candidates[0].logprob == pytest.approx(math.log(0.4))
    assert again[2].distribution.logprobs.exp().tolist() == pytest.approx(TABLE[0])
    assert runtime.passes == [(1,)]


def test_max_time_ends_at_the_next_token() -> None:
    now = itertools.count()
    engine = Engine(mixing_toy(), clock=lambda: float(next(now)))
    number = engine.submit(request([1], max_time=4, ignore_eos=True))
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple)
    assert outputs[0].finish_reason == "time" and 1 <= len(outputs[0].token_ids) <= 5


class LetterCount:
    """A criterion of a user's own: stop at the second token 1."""

    name = "two_ones"

    def start(self, context: Any) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + (token == 1)

    def ends(self, state: int, token: int) -> bool:
        return state + (token == 1) >= 2


def test_a_users_own_criterion_names_the_reason() -> None:
    outputs = run_alone(toy, request([0], own={"criteria": (LetterCount(),)}, suppress_tokens=[2], max_new_tokens=9))
    assert isinstance(outputs, tuple)
    assert outputs[0].token_ids == (1, 0, 1) and outputs[0].finish_reason == "two_ones"


def test_logprobs_are_the_models_own_and_scores_are_processed() -> None:
    outputs = run_alone(toy, request([0], suppress_tokens=[1], max_new_tokens=1, logprobs=2, renormalize_logits=True))
    assert isinstance(outputs, tuple)
    (output,) = outputs
    assert output.token_ids == (2,)
    assert output.logprobs[0] == pytest.approx(math.log(0.4))
    assert output.scores[0] == pytest.approx(0.0)
    assert output.top_logprobs is not None
    assert [(t, pytest.approx(p)) for t, p in output.top_logprobs[0]] == [(1, math.log(0.6)), (2, math.log(0.4))]


def test_processor_order_is_the_users_to_choose() -> None:
    """top_k 2 of (.6 .4) then temperature, against a beam of orders in one batch: each row follows its own."""
    both = [
        request([2], top_p=0.6, temperature=4.0, seed=seed, max_new_tokens=1, processor_order=order)
        for order in (None, ("top_p", "temperature"))
        for seed in range(60)
    ]
    engine = Engine(toy())
    numbers = [engine.submit(each) for each in both]
    found = results(drain(engine))
    tokens = [{found[n][0].token_ids[0] for n in part} for part in (numbers[:60], numbers[60:])]  # type: ignore[index]
    # P = .1 .2 .2 .5: untempered, the two best reach 0.6; at temperature 4 all four are near 1/4 and three are needed.
    assert tokens == [{1, 2, 3}, {1, 3}]

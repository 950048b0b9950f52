"""Prompts that begin alike are computed once, whether they come together or one after the other, and change nothing."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch

import unspool
from tests.sampling import sampled
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from tests.toys import Scripted, drain, mixing_toy, request, results, run_alone
from unspool import LanguageModel
from unspool.engine import Engine, Request
from unspool.errors import CapacityError
from unspool.prefixes import common_prefix
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.pool import SlotPool
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import STRATEGIES, WithPromptScores
from unspool.types import ROOT, Event, Feed, Fork, Output, Rows, Score, Top, Turn

SYSTEM = tuple(random.Random("system").choices(range(1, 13), k=60))


class Remembering(ToyRuntime):
    """A toy that can begin a sequence with what another one holds, or has held; counts the tokens that it is fed."""

    has_prefix_caching = True

    def __init__(self, **options: Any) -> None:
        super().__init__(mixing_toy()._probabilities, 17, eos_token_ids=(16,), **options)
        self.num_fed = self.num_recalled = 0
        self.left: list[tuple[tuple[int, ...], int]] = []
        self.num_invariant_tokens: dict[int, int] = {}

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        rows = super().forward(feeds)
        for feed in feeds:
            self.num_fed += len(feed.tokens)
            held = len(self.cached[feed.seq]) - len(feed.tokens)
            if feed.invariant and self.num_invariant_tokens.setdefault(feed.seq, 0) == held:
                self.num_invariant_tokens[feed.seq] += len(feed.tokens)
        return rows

    def match_prefix(self, seq: int, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        assert seq not in self.cached and least >= 1
        tokens = tuple(tokens)
        live = [(held, self.num_invariant_tokens.get(other, 0)) for other, held in self.cached.items()]
        shared = [
            min(common_prefix(held, tokens), invariant if invariant else len(held))
            for held, invariant in live + self.left
        ]
        count = max(shared, default=0)
        if count < least:
            return 0
        self.cached[seq], self.num_invariant_tokens[seq] = tokens[:count], count if invariant else 0
        self.num_recalled += 1
        return count

    def fork(self, seq: int, child: int) -> None:
        super().fork(seq, child)
        self.num_invariant_tokens[child] = self.num_invariant_tokens.get(seq, 0)

    def truncate(self, seq: int, keep: int) -> int:
        left = super().truncate(seq, keep)
        self.num_invariant_tokens[seq] = min(self.num_invariant_tokens.get(seq, 0), left)
        return left

    def release(self, seq: int) -> None:
        if seq in self.cached:
            self.left = [*self.left, (self.cached[seq], self.num_invariant_tokens.get(seq, 0))][-30:]
        self.num_invariant_tokens.pop(seq, None)
        super().release(seq)


class Counted:
    """A runtime that counts the tokens it is fed. With `plain` it has no way to share."""

    def __init__(self, inner: Any, *, plain: bool = False) -> None:
        self.inner, self.info, self._plain = inner, inner.info, plain
        self.passes: list[tuple[int, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name == "has_prefix_caching" and self._plain:
            return False
        return getattr(self.inner, name)

    @property
    def num_fed(self) -> int:
        return sum(map(sum, self.passes))

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        rows: Rows = self.inner.forward(feeds)
        self.passes.append(tuple(len(feed.tokens) for feed in feeds))
        return rows


def counted(family: str = "gpt2", *, plain: bool = False, **options: Any) -> Counted:
    return Counted(DecoderRuntime(tiny_model(family), owns_model=True, **options), plain=plain)


def outputs_of(runtime: Any, wanted: Sequence[Request], *, gap: int | None = 0, budget: int = 512) -> list[Any]:
    """Run requests that come `gap` steps apart (None: one after the other); returns their outputs in order."""
    engine = Engine(runtime, max_batch_tokens=budget)
    events: list[Event] = []
    numbers = []
    for each in wanted:
        numbers.append(engine.submit(each))
        if gap is None:
            events += drain(engine)
        for _ in range(gap or 0):
            events += engine.step()
            engine.check()
    found = results(events + drain(engine))
    return [found[number] for number in numbers]


def tokens_of(outputs: Sequence[Any]) -> list[list[tuple[int, ...]]]:
    return [[output.token_ids for output in each] for each in outputs]


def questions(count: int, **options: Any) -> list[Request]:
    """Requests with one beginning, which differ in every token behind it."""
    rng = random.Random(count)
    return [
        request([*SYSTEM, number + 20, *rng.choices(range(1, 90), k=rng.randrange(9))], seed=number, **options)
        for number in range(count)
    ]


# --- computed once ------------------------------------------------------------------------------------------------

TOGETHER = {"together": 0, "a step apart": 1, "one after the other": None}


@pytest.mark.parametrize("when", TOGETHER)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_one_beginning_is_computed_once(family: str, when: str) -> None:
    wanted = questions(20, max_new_tokens=1)
    runtime = counted(family)
    found = outputs_of(runtime, wanted, gap=TOGETHER[when])
    assert runtime.num_fed == len(SYSTEM) + sum(len(each.prompt) - len(SYSTEM) for each in wanted)
    assert tokens_of(found) == tokens_of(outputs_of(counted(family, plain=True), wanted))
    runtime.check()


def test_those_who_wait_for_one_prompt_take_part_in_the_pass_behind_it() -> None:
    runtime = counted()
    wanted = questions(5, max_new_tokens=2, ignore_eos=True)
    other = request([90] * 40, max_new_tokens=1)
    outputs_of(runtime, [*wanted, other])
    leader, *followers = [len(each.prompt) for each in wanted]
    # Who has nothing to wait for takes part in the first pass, and the first writes on in the second.
    assert runtime.passes[:2] == [(leader, 40), (1, *[length - len(SYSTEM) for length in followers])]


def test_a_shared_beginning_of_several_passes_is_waited_for_and_computed_once() -> None:
    wanted = questions(4, max_new_tokens=1)
    tails = sum(len(each.prompt) - len(SYSTEM) for each in wanted)
    for budget, more in ((30, 0), (20, 0), (25, 3 * 15)):
        runtime = counted()
        outputs_of(runtime, wanted, budget=budget)
        assert runtime.passes[:2] == [(budget,)] * 2 and max(map(sum, runtime.passes)) <= budget
        # Of what is nearly there, the rest is not waited for.
        assert 0 <= runtime.num_fed - len(SYSTEM) - tails <= more


def test_shared_beginnings_within_shared_beginnings_are_computed_once_each() -> None:
    """Two groups with one beginning, which go on alike for a while."""
    groups = [(*SYSTEM, *[group] * 40) for group in (30, 31)]
    wanted = [request([*group, 50 + n], max_new_tokens=1) for n in range(4) for group in groups]
    runtime = counted()
    outputs_of(runtime, wanted)
    assert runtime.num_fed == len(SYSTEM) + 2 * 40 + len(wanted)
    assert len(runtime.passes) == 3


def test_the_same_prompt_again_computes_its_last_token() -> None:
    runtime = counted()
    (wanted,) = questions(1, max_new_tokens=6, num_beams=3)
    first = outputs_of(runtime, [wanted])
    before, length = runtime.num_fed, len(runtime.passes)
    assert tokens_of(outputs_of(runtime, [wanted])) == tokens_of(first)
    assert runtime.passes[length] == (1,) and runtime.num_fed == 2 * before - (len(wanted.prompt) - 1)


def test_a_prompt_that_goes_on_from_the_last_is_taken_up_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = counted()
    (first,) = questions(1, max_new_tokens=20, ignore_eos=True)
    (outputs,) = outputs_of(runtime, [first])
    outputs_of(runtime, [request([3] * 50, max_new_tokens=3)])  # somebody else in between
    monkeypatch.setattr(SlotPool, "copy", None)
    second = request([*first.prompt, *outputs[0].token_ids, 7, 8, 9], max_new_tokens=1)
    before = runtime.num_fed
    found = outputs_of(runtime, [second])
    # The last token of an output is never fed.
    assert runtime.num_fed - before == 1 + 3
    assert tokens_of(found) == tokens_of(outputs_of(counted(plain=True), [second]))


def test_branches_that_fork_before_the_prompt_is_read_compute_it_once() -> None:
    forks = tuple(Fork(ROOT, child) for child in (1, 2, 3))
    script = Scripted([Turn(moves=forks, asks=tuple(Top(branch, 2) for branch in (ROOT, 1, 2, 3)))])
    runtime = counted()
    outputs_of(runtime, [request(SYSTEM, own={"strategy": script})])
    assert runtime.passes == [(60,), (1, 1, 1)]
    (rows,) = script.heard
    assert all([c.token for c in row.candidates] == [c.token for c in rows[0].candidates] for row in rows)


def test_prompts_behind_negative_prompts_are_shared_too() -> None:
    runtime = counted()
    negative = (*SYSTEM[::-1], 3)
    own = {"negative_prompt": negative}
    wanted = [request([*SYSTEM, 20 + n], own=own, guidance_scale=1.5, max_new_tokens=1) for n in range(3)]
    found = outputs_of(runtime, wanted)
    # Of the same negative prompt again, the last token remains to be fed.
    assert runtime.num_fed == (60 + 3) + (61 + 2)
    assert tokens_of(found) == tokens_of(outputs_of(counted(plain=True), wanted))


def test_draft_models_share_as_well() -> None:
    model, draft = counted(), counted("llama")
    options: dict[str, Any] = {"assistant_confidence_threshold": 0.0, "max_new_tokens": 4, "ignore_eos": True}
    wanted = [request([*SYSTEM, 20 + n], own={"assistant": draft}, **options) for n in range(3)]
    found = outputs_of(model, wanted)
    # A draft begins behind the model's first token.
    assert draft.passes[0] == (62,) and max(map(max, draft.passes[1:])) < 8
    assert tokens_of(found) == tokens_of(outputs_of(counted(plain=True), wanted))


# --- what is not worth it, and what cannot be had ------------------------------------------------------------------


@pytest.mark.parametrize(("shared", "first_pass"), [(15, (17, 17)), (16, (18,))])
def test_a_few_tokens_are_not_waited_for(shared: int, first_pass: tuple[int, ...]) -> None:
    runtime = counted()
    outputs_of(runtime, [request([*SYSTEM[:shared], 20 + n, 9], max_new_tokens=1) for n in range(2)])
    assert runtime.passes[0] == first_pass


@pytest.mark.parametrize(("shared", "fed"), [(7, 9), (8, 1)])
def test_fewer_tokens_than_a_pass_takes_for_one_are_not_copied(shared: int, fed: int) -> None:
    runtime = counted()
    wanted = [request([*SYSTEM[:shared], 20], max_new_tokens=1), request([*SYSTEM[:shared], 21], max_new_tokens=1)]
    outputs_of(runtime, wanted, gap=None)
    assert runtime.passes[1] == ((shared + 1,) if shared < 8 else (1,))


def test_a_runtime_that_recalls_nothing_is_fed_everything_at_once() -> None:
    runtime = counted(plain=True)
    wanted = questions(4, max_new_tokens=1)
    outputs_of(runtime, wanted)
    assert runtime.passes == [tuple(len(each.prompt) for each in wanted)]


def test_hidden_states_of_the_prompt_are_computed_and_serve_those_who_do_not_want_them() -> None:
    wanted = [
        request([*SYSTEM, 20 + n], max_new_tokens=5, **({"penalty_alpha": 0.6, "top_k": 4} if n < 2 else {}))
        for n in range(4)
    ]
    runtime = counted()
    found = outputs_of(runtime, wanted)
    assert runtime.passes[0] == (61, 61) and sorted(runtime.passes[1])[:2] == [1, 1]
    again = outputs_of(runtime, wanted)
    plain = outputs_of(counted(plain=True), wanted)
    assert tokens_of(found) == tokens_of(again) == tokens_of(plain)


def test_what_is_asked_about_a_prompt_is_computed() -> None:
    echo = {"strategy": WithPromptScores(STRATEGIES["greedy"])}
    runtime = counted()
    outputs_of(runtime, [request(SYSTEM, max_new_tokens=1)])
    outputs_of(runtime, [request(SYSTEM, own=echo, max_new_tokens=1)])
    assert runtime.passes == [(60,), (60,)]
    assert len(echo["strategy"].prompt_logprobs) == 59


def test_rows_in_the_middle_of_a_prompt_are_computed_and_what_stands_before_is_not() -> None:
    runtime = counted()
    outputs_of(runtime, [request(SYSTEM, max_new_tokens=1)])
    script = Scripted([Turn(asks=(Top(ROOT, 1), Score(ROOT, (SYSTEM[50],), back=10)))])
    outputs_of(runtime, [request(SYSTEM, own={"strategy": script})])
    # What follows the first 50 tokens comes from feeding the last of these.
    assert runtime.passes == [(60,), (11,)]
    whole = Scripted(script.turns)
    outputs_of(counted(plain=True), [request(SYSTEM, own={"strategy": whole})])
    logprobs = [reply[1].candidates[0].logprob for (reply,) in (script.heard, whole.heard)]
    assert logprobs[0] == pytest.approx(logprobs[1], abs=1e-4)


def test_what_was_computed_with_other_weights_is_not_shared() -> None:
    model = tiny_model("llama")
    runtime = Counted(DecoderRuntime(model, owns_model=False))
    engine = Engine(runtime)
    (first, second) = questions(2, max_new_tokens=8, ignore_eos=True)
    engine.submit(first)
    engine.step()
    with torch.no_grad():
        model.get_input_embeddings().weight += 0.5
    engine.submit(second)  # while the first one is still being written
    engine.step()
    assert runtime.passes[1] == (1, len(second.prompt))
    drain(engine)
    found = outputs_of(runtime, [second])
    fresh = outputs_of(Counted(DecoderRuntime(model, owns_model=False), plain=True), [second])
    assert tokens_of(found) == tokens_of(fresh)
    runtime.check()


# --- the same bits ------------------------------------------------------------------------------------------------


def figures(outputs: Sequence[Output]) -> list[Any]:
    return [(output.token_ids, output.logprobs, output.scores) for output in outputs]


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "gemma2"])
def test_batch_invariant_requests_get_the_same_bits_whatever_they_share(family: str) -> None:
    runtime = counted(family)
    if not runtime.info.batch_invariant:
        pytest.skip(f"not promised: {runtime.info.backend}")
    options: dict[str, Any] = {"batch_invariant": True, "max_new_tokens": 4, "ignore_eos": True, "logprobs": 2}
    wanted = [request([*SYSTEM[: 60 - 7 * n], 20 + n, *SYSTEM[:n]], **options) for n in range(6)]
    alone = [outputs_of(counted(family, plain=True), [each])[0] for each in wanted]
    before = runtime.num_fed
    for budget in (512, 13):
        for order in (wanted, wanted[::-1]):
            pairs = zip(outputs_of(runtime, order, budget=budget), order, strict=True)
            for found, each in pairs:
                assert figures(found) == figures(alone[wanted.index(each)])
    assert runtime.num_fed - before < 0.5 * 4 * sum(len(each.prompt) + 3 for each in wanted), "nothing was shared"


def test_a_batch_invariant_request_shares_nothing_that_was_computed_in_company() -> None:
    runtime = counted()
    plain, invariant = (request([*SYSTEM, 9], max_new_tokens=1, batch_invariant=each) for each in (False, True))
    for wanted in ([plain], [invariant], [invariant], [plain]):
        outputs_of(runtime, wanted)
    assert runtime.passes == [(61,), (61,), (1,), (1,)]
    together = counted()
    outputs_of(together, [plain, invariant])  # it does not wait for what it could not take
    assert together.passes == [(61, 61)]


# --- the doors ----------------------------------------------------------------------------------------------------

TURNS = "{% for message in messages %}{{ message.content }}<|turn|>{% endfor %}"


def test_the_second_turn_of_a_chat_computes_what_is_new() -> None:
    plain = byte_level()
    tokenizer = type(plain)(
        tokenizer_object=plain.backend_tokenizer, eos_token="<|end|>", extra_special_tokens=["<|turn|>"]
    )
    runtime = Counted(DecoderRuntime(tiny_model("gpt2", vocab_size=len(tokenizer)), owns_model=True))
    lm = LanguageModel(runtime, tokenizer)
    options: dict[str, Any] = {"chat_template": TURNS, "max_new_tokens": 12}
    first = lm.chat([{"role": "user", "content": "Tell me of a king who had a daughter."}], **options)
    before, num_passes = runtime.num_fed, len(runtime.passes)
    assert before == len(first.prompt_token_ids) + len(first.completions[0].token_ids) - 1
    second = lm.chat([*first.messages, {"role": "user", "content": "And then?"}], **options)
    # What the template makes of the answer's text need not be the tokens that were written.
    cached = (*first.prompt_token_ids, *first.completions[0].token_ids[:-1])
    shared = common_prefix(cached, second.prompt_token_ids)
    assert shared >= len(first.prompt_token_ids) > 8
    assert runtime.passes[num_passes] == (len(second.prompt_token_ids) - shared,)


def test_the_drop_in_shares_from_call_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("gpt2")
    fed: list[int] = []
    forward = DecoderRuntime.forward

    def counting(self: DecoderRuntime, feeds: Sequence[Feed]) -> Rows:
        fed.append(sum(len(feed.tokens) for feed in feeds))
        return forward(self, feeds)

    monkeypatch.setattr(DecoderRuntime, "forward", counting)
    ids = torch.tensor([[*SYSTEM, 20 + n] for n in range(4)])
    ours = unspool.generate(model, ids, max_new_tokens=1, pad_token_id=0)
    assert sum(fed) == 60 + 4
    assert torch.equal(ours, model.generate(ids, max_new_tokens=1, do_sample=False, pad_token_id=0))
    fed.clear()
    unspool.generate(model, ids[:1], max_new_tokens=1, pad_token_id=0)
    assert fed == [1]


# --- who leaves and who breaks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", range(4))
def test_a_leader_that_leaves_keeps_nobody_waiting(steps: int) -> None:
    runtime = Remembering()
    engine = Engine(runtime, max_batch_tokens=20)
    leader, *followers = [engine.submit(each) for each in questions_of_toys(4)]
    events = [event for _ in range(steps) for event in engine.step()]
    engine.cancel(leader)
    engine.check()
    found = results(events + drain(engine))
    for number, wanted in zip(followers, questions_of_toys(4)[1:], strict=True):
        assert found[number] == run_alone(mixing_toy, wanted)
    # What the leader had computed was not lost.
    assert runtime.num_fed == 60 + 3 * (1 + 3)


def questions_of_toys(count: int) -> list[Request]:
    options: dict[str, Any] = {"max_new_tokens": 4, "ignore_eos": True, "suppress_tokens": [14, 15]}
    return [request([*SYSTEM, number], **options) for number in range(count)]


class Broken(Exception):
    """What the tests break things with."""


class Brittle(Remembering):
    """Raises where it is fed token 14, and where it is to recall what holds token 15."""

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        if any(14 in feed.tokens for feed in feeds):
            raise Broken("forward")
        return super().forward(feeds)

    def match_prefix(self, seq: int, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        if 15 in tokens:
            raise Broken("match_prefix")
        return super().match_prefix(seq, tokens, least=least, invariant=invariant, salt=salt)


@pytest.mark.parametrize(("token", "place"), [(14, 0), (14, 59), (14, 61), (15, 0), (15, 59), (15, 61)])
@pytest.mark.parametrize("budget", [512, 20])
def test_one_that_cannot_begin_fails_alone(token: int, place: int, budget: int) -> None:
    guilty = [*SYSTEM, 1, 2]
    guilty[place] = token
    wanted = [request([*guilty, 3], max_new_tokens=2), *questions_of_toys(3)]
    wanted.insert(2, request([*guilty, 4], max_new_tokens=2))
    runtime = Brittle()
    found = outputs_of(runtime, wanted, budget=budget)
    for index, each in enumerate(wanted):
        if index in (0, 2):
            assert isinstance(found[index], Broken), found[index]
        else:
            assert found[index] == run_alone(mixing_toy, each)
    assert not runtime.cached


def test_who_cannot_recall_for_want_of_room_is_told_so() -> None:
    runtime = counted(max_cache_tokens=70)
    engine = Engine(runtime)
    number = engine.submit(request([*SYSTEM, 9], max_new_tokens=3))
    engine.step()
    # Somebody beside the engine takes room that was promised to the request.
    with pytest.raises(CapacityError, match="at most 70 tokens"):
        runtime.match_prefix(999, SYSTEM[:30], least=8, invariant=False)
    assert isinstance(results(drain(engine))[number], tuple)
    runtime.check()


# --- all together -------------------------------------------------------------------------------------------------


def crowd(rng: random.Random, draft: Any, count: int) -> Iterator[Request]:
    """Yield requests of many kinds, whose prompts begin alike in many ways."""
    kinds: list[Callable[[], tuple[dict[str, Any], dict[str, Any]]]] = [
        lambda: ({}, {}),
        lambda: ({}, {"batch_invariant": True}),
        lambda: ({}, {"do_sample": True, "num_return_sequences": 3}),
        lambda: ({}, {"num_beams": 3, "num_return_sequences": 2}),
        lambda: ({}, {"penalty_alpha": 0.6, "top_k": 4}),
        lambda: ({"negative_prompt": (*SYSTEM[:45], rng.randrange(13))}, {"guidance_scale": 1.5}),
        lambda: ({"assistant": draft}, {"assistant_confidence_threshold": 0.0}),
        lambda: ({"strategy": WithPromptScores(STRATEGIES["greedy"])}, {}),
        lambda: ({}, {"prompt_lookup_num_tokens": 3}),
    ]
    for seed in range(count):
        own, options = rng.choice(kinds)()
        beginning = (*SYSTEM[: rng.choice([0, 20, 45, 60])], *[rng.randrange(13)] * rng.choice([0, 0, 40]))
        prompt = [*beginning, *rng.choices(range(13), k=rng.randrange(1, 9))]
        # What is written may not hold the tokens that break things.
        options |= {"suppress_tokens": [14, 15], "max_new_tokens": rng.randrange(1, 7)}
        yield request(prompt, seed=seed, own=own, **options)


@pytest.mark.parametrize("trial", sampled(range(60), 8))
def test_a_crowd_that_comes_leaves_and_breaks_gets_what_each_gets_alone(trial: int) -> None:
    rng = random.Random(f"crowd {trial}")
    limits = {"max_sequences": 9, "max_tokens": 700} if trial % 2 else {}
    model, draft = Brittle(**limits), Brittle(**limits)
    engine = Engine(model, max_batch_tokens=rng.choice([512, 64, 30, 7]))
    wanted: dict[int, Request] = {}
    cancelled: set[int] = set()
    guilty: set[int] = set()
    events: list[Event] = []
    for each in crowd(rng, draft, 30):
        spoilt = rng.random() < 0.15
        if spoilt:
            prompt = list(each.prompt)
            prompt.insert(rng.randrange(len(prompt)), rng.choice([14, 15]))
            each = request(prompt, max_new_tokens=3, suppress_tokens=[14, 15])
        number = engine.submit(each)
        wanted[number] = each
        guilty |= {number} if spoilt else set()
        for _ in range(rng.choice([0, 0, 1, 3])):
            events += engine.step()
            engine.check()
        if rng.random() < 0.1:
            gone = rng.choice(list(wanted))
            cancelled.add(gone)
            engine.cancel(gone)
            engine.check()
        for runtime in (model, draft):
            held = sum(map(len, runtime.cached.values()))
            assert len(runtime.cached) <= limits.get("max_sequences", 1 << 30)
            assert held <= limits.get("max_tokens", 1 << 30)
    found = results(events + drain(engine))
    for number, each in wanted.items():
        outcome = found.get(number)
        if number in cancelled and outcome is None:
            continue
        assert isinstance(outcome, Broken) and number in guilty or outcome == run_alone(mixing_toy, each), number
    assert not model.cached and not draft.cached
    assert model.num_recalled > 5

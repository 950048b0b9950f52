"""All strategies at once on one engine: each request gets what it gets alone, whoever joins, leaves or breaks."""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch

from tests.grammars.toys import END, compiled, tokenizer_of
from tests.sampling import run_all, sampled
from tests.tiny_models import tiny_model
from tests.toys import mixing_toy, request
from unspool.adapters import AdaptedRuntime
from unspool.engine import Engine, Request
from unspool.engine.request import LockstepGroup
from unspool.protocols import Context, Conversation, RowKey, Runtime, Strategy
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import STRATEGIES, ContinuationScores, NextTokenQuery, WithPromptScores
from unspool.types import Committed, Event, Failed, Feed, Finished, Output, Row, Rows, Tentative

# --- who comes ----------------------------------------------------------------------------------------------------


class Twice:
    """A criterion: ends with the second occurrence of a token."""

    def __init__(self, token: int) -> None:
        self.name, self.token = "twice", token

    def start(self, context: Context) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + (token == self.token)

    def ends(self, state: int, token: int) -> bool:
        return self.advance(state, token) >= 2


class Ladder:
    """A processor: prefers, at each length, the token that is so many above the newest. The state is a list, forked."""

    name = "ladder"

    def start(self, context: Context) -> list[int]:
        return [context.prompt[-1]]

    def advance(self, state: list[int], token: int) -> list[int]:
        state.append(token)
        return state

    def fork(self, state: list[int]) -> list[int]:
        return list(state)

    def apply(self, states: Sequence[list[int]], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        for row, state in enumerate(states):
            scores[row, (state[-1] + len(state)) % scores.shape[-1]] += 1.5
        return scores


def with_prompt_scores(name: str) -> dict[str, Any]:
    return {"strategy": WithPromptScores(STRATEGIES[name])}


def grammar(pattern: str) -> dict[str, Any]:
    """Return the grammar of a request: token n is the n-th letter of the alphabet, up to "l"."""
    return {"grammar": compiled(tokenizer_of((*"abcdefghijkl", END)), vocab_size=200, regex=pattern)}


def company(draft: Runtime, **shared: Any) -> dict[str, Request]:
    """Return a request of every kind by name, fresh ones at each call, with token ids below 16.

    Args:
        draft: what assisted decoding drafts with.
        shared: options that all of them get.
    """
    guests: dict[str, Request] = {}

    def invite(name: str, prompt: Sequence[int], own: dict[str, Any] | None = None, **options: Any) -> None:
        guests[name] = request(prompt, seed=len(guests), own=own, **({"max_new_tokens": 6} | shared | options))

    lockstep_group = LockstepGroup()
    assisted: dict[str, Any] = {"assistant": draft}
    sampling: dict[str, Any] = {"do_sample": True}
    contrastive: dict[str, Any] = {"penalty_alpha": 0.6, "top_k": 4}
    looping = [4, 9, 4, 9, 4, 9, 4]
    loop = {(4, 9): 9.0, (9, 4): 5.0}

    invite("greedy", [1, 3, 5], max_new_tokens=8)
    invite("greedy, penalized", [2, 2], repetition_penalty=1.7, no_repeat_ngram_size=2, max_new_tokens=8)
    invite("greedy, long prompt", [*range(1, 16), *range(1, 9)], frequency_penalty=0.5, logprobs=3)
    invite("greedy, own criterion", [6, 1], {"criteria": (Twice(7), Twice(14))}, ignore_eos=True)
    invite("greedy, own processor", [3], {"processors": (Ladder(),)})
    invite("greedy, traced", [7, 8], {"trace": True}, min_new_tokens=3)
    invite("greedy, out of time", [8, 1], max_time=0.5)
    invite("greedy, in time", [8, 1], max_time=1e9, ignore_eos=True)
    invite("sample", [4], temperature=1.3, max_new_tokens=8)
    invite("sample, four", [5, 6, 7, 8, 9, 1, 2], **sampling, top_k=9, num_return_sequences=4)
    invite("sample, cut", [1], {"tentative": True}, **sampling, top_p=0.7, min_p=0.05, num_return_sequences=2)
    invite("sample, xtc", [6, 5, 4], **sampling, xtc_probability=0.5)
    invite("sample, dry", looping, **sampling, dry_multiplier=0.8, dry_sequence_breakers=[11], logprobs=2)
    invite("sample, traced", [9], {"trace": True}, **sampling, num_return_sequences=3)
    invite("beam", [7, 9, 1], num_beams=3, num_return_sequences=2)
    invite("beam, short", [8, 8], {"tentative": True}, num_beams=4, early_stopping="never", length_penalty=-1.0)
    invite("beam, long", [8, 9], num_beams=5, early_stopping=True, length_penalty=2.0, num_return_sequences=5)
    invite("beam, own processor", [2, 3], {"processors": (Ladder(),)}, num_beams=3, no_repeat_ngram_size=2)
    invite("beam, own criterion", [2, 6], {"criteria": (Twice(10),)}, num_beams=3, ignore_eos=True)
    invite("beam, out of time", [5, 5], num_beams=2, num_return_sequences=2, max_time=0.5)
    invite("beam, one step ahead", [3, 1, 4], {"tentative": True}, num_beams=4, lookahead_steps=1)
    invite("beam, two steps ahead", [1, 5, 9], {"trace": True}, num_beams=3, lookahead_steps=2, max_new_tokens=8)
    invite("beam sampling", [7, 1], num_beams=3, **sampling, top_k=6, num_return_sequences=3)
    invite("beam sampling, ahead", [1, 7], num_beams=2, **sampling, temperature=0.8, lookahead_steps=2)
    invite("diverse", [2, 7], {"tentative": True}, num_beams=4, num_beam_groups=2, diversity_penalty=0.8)
    invite(
        "diverse, traced", [7, 2], {"trace": True}, num_beams=6, num_beam_groups=3, diversity_penalty=2.0,
        num_return_sequences=6, repetition_penalty=1.2,
    )  # fmt: skip
    invite("forced phrase", [4, 4], num_beams=3, force_words_ids=[[3, 11]], num_return_sequences=2)
    invite("forced choice", [4, 5], {"trace": True}, num_beams=2, force_words_ids=[[[5], [6, 7, 8]], [9]])
    invite("forced in order", [4, 6], num_beams=3, force_words_ids=[[13], [3]], force_words_ordered=True)
    invite("forced with gaps", [4, 7], {"tentative": True}, num_beams=2, force_words_ids=[[3, None, 9]])
    invite("forced, not to be had", [4, 8], num_beams=2, force_words_ids=[[3]], suppress_tokens=[3])
    invite("stochastic", [1, 1, 2], strategy="stochastic_beam", num_beams=4, num_return_sequences=4)
    invite("stochastic, few", [1, 2, 2], {"trace": True}, strategy="stochastic_beam", num_beams=3, top_p=0.9)
    invite("contrastive", [9, 2, 9], **contrastive, max_new_tokens=8)
    invite("contrastive, traced", [9, 3], {"trace": True, "tentative": True}, **contrastive, repetition_penalty=1.3)
    invite("best of, by probability", [5, 1], best_of=4, num_return_sequences=2)
    invite("best of, by risk", [5, 2], {"tentative": True}, best_of=5, best_of_by="mbr", temperature=1.4)
    invite("dola", [6, 6], dola_layers="low")
    invite("dola, sampled", [6, 7], dola_layers=(0, 1), **sampling, num_return_sequences=2)
    invite("dola, beams", [6, 8], dola_layers="high", num_beams=2)
    invite("guided", [3, 3], {"negative_prompt": (1, 2, 3, 4)}, guidance_scale=1.5)
    invite("guided, sampled", [3, 4], {"negative_prompt": (9,)}, guidance_scale=2.0, **sampling, num_return_sequences=2)
    invite("guided, beams", [3, 5], {"negative_prompt": (5,), "trace": True}, guidance_scale=1.3, num_beams=3)
    invite(
        "guided, forced", [3, 6], {"negative_prompt": (6, 1)}, guidance_scale=1.3, num_beams=2, force_words_ids=[[8]]
    )
    invite("guided, contrastive", [3, 7], {"negative_prompt": (7,)}, guidance_scale=1.3, **contrastive)
    invite("guided, assisted", [3, 8], assisted | {"negative_prompt": (8, 8)}, guidance_scale=1.4, max_new_tokens=8)
    invite("assisted", [1, 3, 5], assisted, max_new_tokens=8)
    invite("assisted, traced", [1, 4], assisted | {"trace": True, "tentative": True}, repetition_penalty=1.3)
    invite("assisted, sampled", [1, 6], assisted, **sampling, num_return_sequences=3, max_new_tokens=8)
    invite("prompt lookup", looping, prompt_lookup_num_tokens=3, sequence_bias=loop, max_new_tokens=8)
    invite("prompt lookup, sampled", looping, prompt_lookup_num_tokens=2, **sampling, sequence_bias=loop)
    invite("echo", [5, 4, 3, 2], with_prompt_scores("greedy"), logprobs=1)
    invite("echo, beams", [5, 4, 3, 1], with_prompt_scores("beam"), num_beams=3, logprobs=0)
    invite("echo, contrastive", [5, 4, 1, 1], with_prompt_scores("contrastive"), **contrastive)
    invite(
        "echo, guided",
        [5, 4, 1, 2],
        with_prompt_scores("sample") | {"negative_prompt": (5, 5)},
        **sampling,
        guidance_scale=1.2,
    )
    invite("in step, greedy", [9, 5], {"lockstep_group": lockstep_group, "criteria": (Twice(4),)}, max_new_tokens=8)
    invite("in step, beams", [9, 6], {"lockstep_group": lockstep_group}, num_beams=3, num_return_sequences=3)
    invite("next token", [8, 8, 8], {"strategy": NextTokenQuery()}, temperature=0.5, top_k=5)
    invite("next token of beams", [8, 8, 9], {"strategy": NextTokenQuery("log_probs")}, repetition_penalty=2.0)
    invite("score", [7, 7, 1, 2, 3], {"strategy": ContinuationScores((1, 2, 3, 9))})
    invite("grammar", [1, 3], grammar("a(b|c|d)*(ef?)?"))
    invite("grammar, traced", [1, 4], grammar("[a-f]{2}(gh)*") | {"trace": True}, repetition_penalty=1.4)
    invite("grammar, one text", [1, 5], grammar("abcdefghijkl"), max_new_tokens=20)
    invite("grammar, sampled", [1, 7], grammar("[a-f]{2,5}|g+"), **sampling, num_return_sequences=3, top_p=0.8)
    invite("grammar, beams", [1, 8], grammar("(ab|cd|ef)+") | {"tentative": True}, num_beams=3, num_return_sequences=2)
    invite("grammar, few texts", [1, 9], grammar("ab|cd"), num_beams=4)
    invite("grammar, beam sampling", [2, 1], grammar("(a|b|c)*d"), num_beams=3, **sampling)
    invite("grammar, diverse", [2, 3], grammar("[a-h]+"), num_beams=4, num_beam_groups=2, diversity_penalty=0.8)
    invite("grammar, forced", [2, 4], grammar("[a-h]+"), num_beams=3, force_words_ids=[[3, 5]])
    invite("grammar, forced in vain", [2, 5], grammar("[a-c]+"), num_beams=2, force_words_ids=[[5]])
    invite("grammar, stochastic", [2, 6], grammar("[a-h]{1,4}"), strategy="stochastic_beam", num_beams=3)
    invite("grammar, contrastive", [2, 8], grammar("(ab|bc|ca)+"), **contrastive)
    invite("grammar, best of", [2, 9], grammar("[a-d]+"), best_of=3)
    invite("grammar, dola", [3, 1], grammar("(ab|cd)+e?"), dola_layers="low")
    invite("grammar, guided", [3, 2], grammar("[c-k]*a") | {"negative_prompt": (1, 2)}, guidance_scale=1.5)
    invite("assisted, grammar", [3, 9], assisted | grammar("(ab|ac|dd)+"), max_new_tokens=8)
    invite("assisted, sampled grammar", [4, 1], assisted | grammar("([a-e]f)+"), **sampling, num_return_sequences=2)
    invite("prompt lookup, grammar", looping, grammar("(e|j|a)+"), prompt_lookup_num_tokens=3, sequence_bias=loop)
    invite("in step, grammar", [9, 7], grammar("[ab]+") | {"lockstep_group": lockstep_group}, num_beams=2)
    return guests


def names() -> list[str]:
    return list(company(mixing_toy()))


# --- where they meet ----------------------------------------------------------------------------------------------


class House(NamedTuple):
    """Runtimes to meet on.

    make: returns the model and a draft of it, with these limits on both. shared: see company. tolerance: of figures;
    where it is 0, only what draft models say may differ in its last bits, unless `exact_drafts`. few: how many come
    where drills are sampled.
    """

    make: Callable[..., tuple[Any, Any]]
    shared: dict[str, Any]
    tolerance: float = 0.0
    exact_drafts: bool = False
    few: int = 1000

    def company(self, draft: Runtime) -> dict[str, Request]:
        guests = company(draft, **self.shared)
        return {name: guests[name] for name in sampled(list(guests), self.few)}


def toys(**limits: Any) -> tuple[ToyRuntime, ToyRuntime]:
    def mostly(tokens: tuple[int, ...]) -> Sequence[float]:
        found = list(plain(tokens))
        found[sum(tokens[-3:]) % 17] += 80.0 * (sum(tokens) % 4 == 0)
        return found

    plain = mixing_toy()._probabilities
    layered = mixing_toy(inner=lambda tokens, layer: plain(tokens[-layer - 1 :]), num_layers=2, **limits)
    return layered, ToyRuntime(mostly, 17, eos_token_ids=(16,), **limits)


def tiny(family: str) -> Callable[..., tuple[DecoderRuntime, DecoderRuntime]]:
    @cache
    def weights() -> tuple[Any, Any]:
        model = tiny_model(family, seed=3)
        near = copy.deepcopy(model)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(1)
            for parameter in near.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        return model, near

    def make(max_sequences: int | None = None, max_tokens: int | None = None) -> tuple[DecoderRuntime, DecoderRuntime]:
        model, near = (
            DecoderRuntime(each, owns_model=False, max_sequences=max_sequences, max_cache_tokens=max_tokens)
            for each in weights()
        )
        return model, near

    return make


ENDS = {"eos_token_id": (12, 16)}
MORE_ENDS = {"eos_token_id": tuple(range(16, 97, 9))}
HOUSES = {
    "toy": House(toys, ENDS, exact_drafts=True),
    "gpt2": House(tiny("gpt2"), MORE_ENDS, tolerance=2e-4),
    "llama": House(tiny("llama"), MORE_ENDS, tolerance=2e-4),
    "gpt2, invariant": House(tiny("gpt2"), MORE_ENDS | {"batch_invariant": True}, few=24),
    "llama, invariant": House(tiny("llama"), MORE_ENDS | {"batch_invariant": True}, few=24),
}
LIMITS = {"max_sequences": 13, "max_tokens": 330}
"""Enough for the largest of them alone, and not for many at once."""


def held(runtime: Any) -> set[int]:
    """Return the sequences that a runtime holds."""
    return set(runtime.cached if hasattr(runtime, "cached") else runtime._slots.live)


@dataclass
class Meeting:
    """An engine with its runtimes, who came, and what each was told."""

    model: Any
    draft: Any
    engine: Engine
    guests: dict[int, str] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    requests: dict[str, Request] = field(default_factory=dict)

    @classmethod
    def at(cls, model: Any, draft: Any, budget: int = 512) -> Meeting:
        ticks = itertools.count()
        return cls(model, draft, Engine(model, max_batch_tokens=budget, clock=lambda: float(next(ticks))))

    def welcome(self, name: str, wanted: Request) -> int:
        number = self.engine.submit(wanted)
        self.guests[number], self.requests[name] = name, wanted
        return number

    def step(self) -> None:
        self.events += self.engine.step()
        self.check()

    def check(self) -> None:
        """Assert what holds between steps: nobody holds memory but live branches, each on its own runtime."""
        self.engine.check()
        cached_seqs = [
            cached_seq
            for conversation in self.engine._running.values()
            for branch in conversation.tree.live_branches()
            for cached_seq in branch.cached_seqs
        ]
        for runtime in (self.model, self.draft):
            cached = {
                cached_seq.seq
                for cached_seq in cached_seqs
                if _behind(cached_seq.runtime) is runtime and cached_seq.cached
            }
            assert held(runtime) == cached, "a sequence belongs to nobody"
            if hasattr(runtime, "check"):
                runtime.check()

    def go_on(self, steps: int = 10_000) -> None:
        for _ in range(steps):
            if self.engine.idle:
                break
            self.step()
        if self.engine.idle:
            assert not held(self.model) and not held(self.draft), "sequences were left"

    def told(self, name: str) -> Told:
        """Return what one of the guests was told, the number of its request taken off."""
        events = [replace(event, request=0) for event in self.events if self.guests.get(event.request) == name]
        return Told(events, getattr(self.requests[name].strategy, "prompt_logprobs", ()))


class Told(NamedTuple):
    """All events of one request, and the log-probabilities of its prompt where these were wanted."""

    events: list[Event]
    prompt_logprobs: tuple[float, ...]

    @property
    def end(self) -> Finished | Failed:
        end = self.events[-1]
        assert isinstance(end, Finished | Failed)
        return end

    @property
    def stream(self) -> list[Event]:
        return [event for event in self.events if isinstance(event, Committed | Tentative)]


def assert_same(found: Told, alone: Told, name: str, house: House) -> None:
    """Assert that two tellings are one."""
    assert isinstance(alone.end, Finished), alone.end
    assert isinstance(found.end, Finished), (name, found.end)
    tolerance = house.tolerance
    near = (lambda value: pytest.approx(value, abs=tolerance)) if tolerance else (lambda value: value)
    for one, other in zip(found.end.outputs, alone.end.outputs, strict=True):
        assert said(one) == said(other), name
        assert one.logprobs == near(other.logprobs) and one.scores == near(other.scores), name
        assert one.score == near(other.score), name
    assert found.prompt_logprobs == near(alone.prompt_logprobs), name
    if not alone.end.outputs:
        for mine, theirs in zip(found.end.rows, alone.end.rows, strict=True):
            assert figures(mine) == near(figures(theirs)), name
    drafted = name.startswith("assisted") and not house.exact_drafts
    if not tolerance and not drafted:
        assert found.stream == alone.stream, name
        assert repr(found.end.trace) == repr(alone.end.trace), name


def said(output: Output) -> tuple[Any, ...]:
    """Return what has no rounding in it."""
    alternatives = tuple(tuple(token for token, _ in place) for place in output.top_logprobs or ())
    return output.token_ids, output.finish_reason, output.unmet, alternatives


def figures(row: Row) -> list[float]:
    """Return the numbers of a row in order."""
    whole = row.distribution
    tensors = (whole.logprobs, whole.scores, whole.cut_by.float()) if whole is not None else ()
    return [each.logprob for each in row.candidates] + [value for each in tensors for value in each.tolist()]


@cache
def alone(house: str) -> dict[str, Told]:
    """Return what each is told alone, one after the other on the same runtimes."""
    model, draft = HOUSES[house].make()
    told = {}
    for name, wanted in HOUSES[house].company(draft).items():
        meeting = Meeting.at(model, draft)
        meeting.welcome(name, wanted)
        meeting.go_on()
        told[name] = meeting.told(name)
    return told


def shuffled(house: str, draft: Runtime, trial: int) -> Iterator[tuple[str, Request]]:
    guests = list(HOUSES[house].company(draft).items())
    random.Random(trial).shuffle(guests)
    return iter(guests)


def test_the_company_is_everybody() -> None:
    guests = company(mixing_toy())
    assert len(guests) >= 50
    assert {wanted.strategy.name for wanted in guests.values()} >= set(STRATEGIES)
    found = alone("toy")
    writers = [name for name, told in found.items() if isinstance(told.end, Finished) and told.end.outputs]
    assert len(writers) == len(guests) - 3
    reasons = {each.finish_reason for name in writers for each in found[name].end.outputs}  # type: ignore[union-attr]
    assert reasons >= {"eos", "length", "time", "twice"}
    assert sum(any(isinstance(event, Tentative) for event in told.events) for told in found.values()) >= 5
    assert sum(isinstance(told.end, Finished) and told.end.trace is not None for told in found.values()) >= 9


TOGETHER = [(house, trial) for house in HOUSES for trial in range(30 if house == "toy" else 8)]
FEW = [*[("toy", trial) for trial in range(4)], ("gpt2", 3), ("llama, invariant", 2)]


@pytest.mark.parametrize(("house", "trial"), TOGETHER if run_all() else FEW)
def test_each_is_told_in_company_and_in_any_order_what_it_is_told_alone(house: str, trial: int) -> None:
    model, draft = HOUSES[house].make(**(LIMITS if trial % 2 else {}))
    meeting = Meeting.at(model, draft, budget=(512, 5, 1, 23)[trial % 4])
    for name, wanted in shuffled(house, draft, trial):
        meeting.welcome(name, wanted)
        if trial % 3 == 1:
            meeting.step()
    meeting.go_on()
    for name, told in alone(house).items():
        assert_same(meeting.told(name), told, name, HOUSES[house])


# --- who leaves ---------------------------------------------------------------------------------------------------

LEAVING = [(house, trial) for house in ("toy", "gpt2") for trial in range(40 if house == "toy" else 12)]


@pytest.mark.parametrize(("house", "trial"), LEAVING if run_all() else [*LEAVING[:4], LEAVING[40]])
def test_any_of_them_can_leave_at_any_step_without_harm_to_the_others(house: str, trial: int) -> None:
    """Four trials in a row have each of them leave once."""
    rng = random.Random(f"leave {trial // 4}")
    model, draft = HOUSES[house].make(**(LIMITS if trial % 2 else {}))
    meeting = Meeting.at(model, draft, budget=(512, 5)[trial // 2 % 2])
    numbers = {name: meeting.welcome(name, wanted) for name, wanted in shuffled(house, draft, trial // 4)}
    leaving = [(rng.choice((0, 1, 2, 3, 5, 8, 13, 21)), name) for name in numbers][trial % 4 :: 4]
    for step in range(22):
        for name in [name for when, name in leaving if when == step]:
            meeting.engine.cancel(numbers[name])
            meeting.check()
        meeting.step()
    meeting.go_on()
    gone = {name for _, name in leaving}
    for name, told in alone(house).items():
        if name not in gone or any(isinstance(event, Finished) for event in meeting.told(name).events):
            assert_same(meeting.told(name), told, name, HOUSES[house])
        else:
            assert meeting.told(name).stream == told.stream[: len(meeting.told(name).stream)] or HOUSES[house].tolerance


# --- who breaks ---------------------------------------------------------------------------------------------------


class Broken(Exception):
    """What the tests break things with."""


@dataclass
class Fuse:
    """Raises when it is used for the n-th time."""

    left: int
    blown: bool = False

    def use(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.blown = True
            raise Broken("on purpose")


class BreakingStrategy:
    """Another strategy's conversation that raises instead of its n-th turn; everything else is the strategy's own."""

    def __init__(self, inner: Strategy, fuse: Fuse) -> None:
        self._inner, self._fuse = inner, fuse

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def run(self, context: Context) -> Conversation:
        conversation = self._inner.run(context)
        self._fuse.use()
        turn = next(conversation)
        while True:
            reply = yield turn
            self._fuse.use()
            try:
                turn = conversation.send(reply)
            except StopIteration as stop:
                return stop.value  # type: ignore[no-any-return]


class BreakingProcessor(Ladder):
    """Raises in one of its methods."""

    def __init__(self, method: str, fuse: Fuse) -> None:
        self.name = "breaking"
        inner = getattr(self, method)

        def breaking(*arguments: Any) -> Any:
            fuse.use()
            return inner(*arguments)

        setattr(self, method, breaking)


class BreakingCriterion(Twice):
    """Raises when asked whether a sequence ends."""

    def __init__(self, fuse: Fuse) -> None:
        super().__init__(3)
        self._fuse = fuse

    def ends(self, state: int, token: int) -> bool:
        self._fuse.use()
        return super().ends(state, token)


MARKS = {"model": 0, "draft": 15}
"""Which runtime breaks over prompts that begin with which token; none of the company does."""


def _behind(guard: Any) -> Any:
    """Return the runtime that a test made, behind its guard and, if it has no base class, its adapter."""
    runtime = guard._runtime
    return runtime._given if isinstance(runtime, AdaptedRuntime) else runtime


class BrittleRuntime:
    """A runtime that raises when it is fed the n-th time for a sequence whose prompt begins with a token."""

    def __init__(self, inner: Any, mark: int) -> None:
        self.inner, self._mark = inner, mark
        self.fuse = Fuse(1 << 30)
        self._marked: set[int] = set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        known = held(self.inner)
        opened = {feed.seq for feed in feeds if feed.seq not in known and feed.tokens[0] == self._mark}
        self._marked |= opened
        if any(feed.seq in self._marked for feed in feeds):
            self.fuse.use()
        return self.inner.forward(feeds)  # type: ignore[no-any-return]

    def fork(self, seq: int, child: int) -> None:
        self.inner.fork(seq, child)
        self._marked |= {child} if seq in self._marked else set()


def broken(wanted: Request, how: str, model: BrittleRuntime, draft: BrittleRuntime, after: int) -> tuple[Request, Fuse]:
    """Return the request with something in it that will break."""
    fuse = Fuse(after)
    if how in ("model", "draft"):
        (model if how == "model" else draft).fuse = fuse
        return replace(wanted, prompt=(MARKS[how], *wanted.prompt)), fuse
    if how == "strategy":
        return replace(wanted, strategy=BreakingStrategy(wanted.strategy, fuse)), fuse
    if how == "criterion":
        return replace(wanted, criteria=(*wanted.criteria, BreakingCriterion(fuse))), fuse
    return replace(wanted, processors=(*wanted.processors, BreakingProcessor(how, fuse))), fuse


WAYS = ("strategy", "start", "advance", "fork", "apply", "criterion", "model", "draft")
BREAKING = [(house, trial) for house in ("toy", "gpt2") for trial in range(60 if house == "toy" else 15)]


def breaking_company(house: str, trial: int) -> tuple[Meeting, dict[str, Fuse]]:
    """Return a meeting that is over, and the fuse of each guest that something was wrong with, one of each kind."""
    rng = random.Random(trial)
    made = HOUSES[house].make(**(LIMITS if trial % 2 else {}))
    model, draft = map(BrittleRuntime, made, MARKS.values())
    meeting = Meeting.at(model, draft, budget=(512, 5)[trial // 2 % 2])
    guests = dict(shuffled(house, draft, trial))
    drafting = [name for name in guests if "assisted" in name]
    others = [name for name in guests if name not in drafting and not name.startswith(("score", "next", "echo"))]
    victims = dict(zip([*rng.sample(others, len(WAYS) - 1), rng.choice(drafting)], WAYS, strict=True))
    fuses = {}
    for name, wanted in guests.items():
        if name in victims:
            wanted, fuses[name] = broken(wanted, victims[name], model, draft, rng.randrange(6))
        meeting.welcome(name, wanted)
    meeting.go_on()
    return meeting, fuses


@pytest.mark.parametrize(("house", "trial"), BREAKING if run_all() else [*BREAKING[:4], BREAKING[60]])
def test_one_that_breaks_hurts_no_other(house: str, trial: int) -> None:
    meeting, fuses = breaking_company(house, trial)
    for name, told in alone(house).items():
        if name not in fuses:
            assert_same(meeting.told(name), told, name, HOUSES[house])
            continue
        end = meeting.told(name).end
        assert isinstance(end, Failed) is fuses[name].blown, name
        assert not isinstance(end, Failed) or isinstance(end.error, Broken), end
    assert sum(fuse.blown for fuse in fuses.values()) >= 4

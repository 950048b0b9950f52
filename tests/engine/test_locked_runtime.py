"""One runtime, several engines in several threads: its calls never overlap, and its guard lives no longer than it."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from tests.toys import drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.engine.locked_runtime import _LOCKED_RUNTIMES, LockedRuntime, locked
from unspool.protocols import Runtime
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Feed, Rows


class Narrow:
    """A runtime with room for one caller: notes each call, and any that comes while another is inside."""

    def __init__(self, inner: ToyRuntime) -> None:
        self.inner, self.info = inner, inner.info
        self.calls: Counter[str] = Counter()
        self.callers: set[int] = set()
        self.overlaps: list[str] = []
        self._inside = False

    def _enter(self, name: str, work: Callable[[], Any]) -> Any:
        if self._inside:
            self.overlaps.append(name)
        self._inside = True
        self.calls[name] += 1
        self.callers.add(threading.get_ident())
        for _ in range(20):
            threading.Event().wait(0)  # a chance for another thread
        try:
            return work()
        finally:
            self._inside = False

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        return self._enter("forward", lambda: self.inner.forward(feeds))  # type: ignore[no-any-return]

    def fork(self, seq: int, child: int) -> None:
        self._enter("fork", lambda: self.inner.fork(seq, child))

    def truncate(self, seq: int, keep: int) -> int:
        return self._enter("truncate", lambda: self.inner.truncate(seq, keep))  # type: ignore[no-any-return]

    def release(self, seq: int) -> None:
        self._enter("release", lambda: self.inner.release(seq))


@pytest.fixture
def quick_switches() -> Iterator[None]:
    """Threads take turns as often as the interpreter can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def hostile() -> ToyRuntime:
    """A toy that hardly ever says what `mixing_toy` says, so that guesses are taken back."""
    model = mixing_toy()._probabilities
    return ToyRuntime(lambda tokens: [1.0 / value for value in model(tokens)], 17)


def test_calls_of_two_engines_in_two_threads_never_overlap(quick_switches: None) -> None:
    shared = Narrow(hostile())
    options: dict[str, Any] = {"max_new_tokens": 14, "ignore_eos": True}
    drafting = {"own": {"assistant": shared}, "assistant_confidence_threshold": 0.0}
    start = threading.Barrier(2)
    found: dict[str, Any] = {}

    def work(name: str, engine: Engine, **more: Any) -> None:
        wanted = [request([n, 4], **options, **more) for n in range(3)]
        start.wait(30)
        numbers = [engine.submit(each) for each in wanted]
        outcome = results(drain(engine))
        found[name] = [outcome[number] for number in numbers]

    # One engine drafts with the runtime, the other writes with it.
    threads = [
        threading.Thread(target=work, args=("drafted", Engine(mixing_toy())), kwargs=drafting),
        threading.Thread(target=work, args=("own", Engine(shared)), kwargs={"num_beams": 3}),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not shared.overlaps
    assert set(shared.calls) == {"forward", "fork", "truncate", "release"} and len(shared.callers) == 2
    assert not shared.inner.cached
    for name, model, more in (("drafted", mixing_toy(), {}), ("own", hostile(), {"num_beams": 3})):
        engine = Engine(model)
        numbers = [engine.submit(request([n, 4], **options, **more)) for n in range(3)]
        alone = results(drain(engine))
        tokens = [[output.token_ids for output in alone[number]] for number in numbers]  # type: ignore[union-attr]
        assert [[output.token_ids for output in outputs] for outputs in found[name]] == tokens


def test_a_call_waits_until_the_one_inside_is_through() -> None:
    toy = mixing_toy()
    inside, go_on = threading.Event(), threading.Event()
    forward = toy.forward

    def slow(feeds: Sequence[Feed]) -> Rows:
        inside.set()
        assert go_on.wait(30)
        return forward(feeds)

    toy.forward = slow  # type: ignore[method-assign]
    feed = Feed(seq=1, tokens=(1, 2), asked=(1,))
    first = threading.Thread(target=lambda: locked(toy).forward([feed]))
    second = threading.Thread(target=lambda: locked(toy).release(1))
    first.start()
    assert inside.wait(30)
    second.start()
    go_on.set()
    for thread in (first, second):
        thread.join(30)
    assert not toy.cached, "the release came behind the forward"


class Caching(Narrow):
    """A runtime with room for one caller and a prefix cache: it holds all but the newest token that it is given."""

    has_prefix_caching = True

    def match_prefix(self, seq: int, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        def work() -> int:
            self.inner.cached[seq] = tuple(tokens[:-1])
            return len(tokens) - 1

        return self._enter("match_prefix", work)  # type: ignore[no-any-return]


def test_optional_abilities_of_a_runtime_are_passed_on() -> None:
    assert not locked(mixing_toy()).has_prefix_caching
    runtime = Caching(mixing_toy())
    assert locked(runtime).has_prefix_caching
    assert locked(runtime).match_prefix(3, (5, 6, 7), least=1, invariant=False) == 2
    assert runtime.inner.cached == {3: (5, 6)}


def test_prefix_matching_waits_for_other_calls_too(quick_switches: None) -> None:
    runtime = Caching(mixing_toy())
    guard = locked(runtime)

    def work(name: int) -> None:
        for seq in range(name, name + 60, 2):
            guard.match_prefix(seq, (1, 2, 3), least=1, invariant=False)
            guard.forward([Feed(seq=seq, tokens=(4,), asked=(0,))])

    threads = [threading.Thread(target=work, args=(name,)) for name in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not runtime.overlaps and runtime.calls == {"match_prefix": 60, "forward": 60}


def test_a_call_that_raises_lets_the_next_one_in() -> None:
    guard = locked(mixing_toy())
    with pytest.raises(KeyError):
        guard.fork(7, 8)
    guard.forward([Feed(seq=1, tokens=(1,), asked=(0,))])
    guard.release(1)


def test_a_runtime_has_one_guard_wherever_it_is_used() -> None:
    model, draft = mixing_toy(), mixing_toy()
    guard = locked(model)
    assert isinstance(guard, Runtime) and guard.info is model.info
    assert locked(model) is guard is locked(guard)
    assert locked(draft) is not guard
    first, second = Engine(model), Engine(guard)
    assert first._model is second._model is guard


def test_two_threads_that_ask_at_once_get_the_same_guard(quick_switches: None) -> None:
    for _ in range(50):
        model = mixing_toy()
        start = threading.Barrier(4)
        guards: list[LockedRuntime] = []

        def ask(
            model: ToyRuntime = model, start: threading.Barrier = start, guards: list[LockedRuntime] = guards
        ) -> None:
            start.wait(30)
            guards.append(locked(model))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len({id(guard) for guard in guards}) == 1


def test_a_guard_goes_with_its_engines_and_holds_no_runtime_beyond() -> None:
    model, draft = mixing_toy(), mixing_toy()
    watched = [weakref.ref(each) for each in (model, draft)]
    ids = [id(model), id(draft)]
    engine = Engine(model)
    engine.submit(request([1, 2], own={"assistant": draft}, max_new_tokens=5))
    engine.step()
    assert all(each in _LOCKED_RUNTIMES for each in ids)
    del draft
    assert watched[1]() is not None, "a request under way needs its draft model"
    drain(engine)
    gc.collect()
    assert watched[1]() is None and ids[1] not in _LOCKED_RUNTIMES, "nothing needs it any more"
    del engine
    gc.collect()
    assert ids[0] not in _LOCKED_RUNTIMES
    del model
    assert watched[0]() is None


def test_a_runtime_at_the_place_of_one_that_is_gone_gets_a_guard_of_its_own() -> None:
    seen: set[int] = set()
    for _ in range(50):
        model = mixing_toy()
        seen.add(id(model))
        assert locked(model)._runtime is model
        del model
    assert len(seen) < 50, "no place was used twice, so nothing was tested"

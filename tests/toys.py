"""Toy runtimes, requests and a small beam search of the tests' own, for tests that need no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unspool.config import GenerationConfig, resolve
from unspool.engine import Engine, Request
from unspool.protocols import Context, Conversation
from unspool.runtimes.toy import ToyRuntime
from unspool.strategies import STRATEGIES
from unspool.types import ROOT, Commit, Drop, Event, Extend, Failed, Finished, Fork, Hypothesis, Move, Output, Top, Turn

END = 3
TABLE = {
    0: [0.0, 0.6, 0.4, 0.0],
    1: [0.3, 0.0, 0.7, 0.0],
    2: [0.1, 0.2, 0.2, 0.5],
    3: [1.0, 0.0, 0.0, 0.0],
}


def toy(**options: Any) -> ToyRuntime:
    """Four tokens, the last of them ends; P(next | newest) stands in TABLE."""
    return ToyRuntime(TABLE, 4, eos_token_ids=(END,), **options)


def mixing_toy(vocab: int = 17, **options: Any) -> ToyRuntime:
    """A model whose distribution depends on every token so far, and which rarely ends."""

    def probabilities(tokens: tuple[int, ...]) -> Sequence[float]:
        state = 7
        for token in tokens:
            state = (state * 31 + token * 17 + 3) % 10007
        return [1.0 + (state * (index + 1) * 7919) % 101 for index in range(vocab - 1)] + [1.0]

    return ToyRuntime(probabilities, vocab, eos_token_ids=(vocab - 1,), **options)


def request(prompt: Sequence[int], *, seed: int = 0, own: dict[str, Any] | None = None, **options: Any) -> Request:
    """Build a request as the native API would. own: strategy, processors, criteria objects."""
    own = dict(own or {})
    strategy = own.pop("strategy", None)
    config = resolve(
        options, None, GenerationConfig(), assistant="assistant" in own, custom=strategy.name if strategy else None
    )
    return Request(
        prompt=tuple(prompt), config=config, seed=seed, strategy=strategy or STRATEGIES[config.strategy], **own
    )


def drain(engine: Engine) -> list[Event]:
    """Run the engine until it is idle, checking its invariants after every step."""
    events: list[Event] = []
    for _ in range(10_000):
        if engine.idle:
            return events
        events += engine.step()
        engine.check()
    raise AssertionError("the engine never came to rest")


def results(events: Sequence[Event]) -> dict[int, tuple[Output, ...] | Exception]:
    """Return outputs or error by request number."""
    found: dict[int, tuple[Output, ...] | Exception] = {}
    for event in events:
        if isinstance(event, Finished):
            found[event.request] = event.outputs
        elif isinstance(event, Failed):
            found[event.request] = event.error
    return found


def run_alone(make: Any, wanted: Request) -> tuple[Output, ...] | Exception:
    """Run one request on a fresh runtime, leaving nothing behind."""
    runtime = make()
    engine = Engine(runtime)
    number = engine.submit(wanted)
    outcome = results(drain(engine))[number]
    assert not runtime.cached, "sequences were left in the runtime"
    return outcome


class SmallBeam:
    """Beam search in twenty lines: what a user's own strategy looks like. Best hypotheses by total log-probability."""

    name = "small_beam"
    space = "log_probs"

    def __init__(self, width: int) -> None:
        self.width = width

    def max_branches(self, config: GenerationConfig) -> int:
        return self.width

    def run(self, context: Context) -> Conversation:
        beams, fresh, done = {ROOT: (0, 0.0)}, 1, []
        reply = yield Turn(asks=(Top(ROOT, self.width),))
        while True:
            ranked = sorted(
                ((total + c.score, branch, c) for (branch, (_, total)), row in zip(beams.items(), reply, strict=True)
                 for c in row.candidates),
                key=lambda item: (-item[0], item[1], item[2].token),
            )  # fmt: skip
            lengths = {branch: length for branch, (length, _) in beams.items()}
            done += [Hypothesis(b, lengths[b], c, s) for s, b, c in ranked if c.ends]
            going = [(s, b, c) for s, b, c in ranked if not c.ends][: self.width]
            if not going:
                return sorted(done, key=lambda h: -h.score)
            moves: list[Move] = [Drop(b) for b in beams if b not in {b for _, b, _ in going}]
            grown: dict[int, tuple[int, float]] = {}
            for s, b, c in going:
                child = b
                if b in grown:
                    child, fresh = fresh, fresh + 1
                    moves.append(Fork(b, child))
                moves.append(Extend(child, (c.token,)))
                grown[child] = (lengths[b] + 1, s)
            beams = grown
            reply = yield Turn(moves=tuple(moves), asks=tuple(Top(b, self.width) for b in beams))


class Scripted:
    """A strategy that says the given Turns and returns the given hypotheses, whatever it hears."""

    name = "scripted"
    space = "logits"

    def __init__(self, turns: Sequence[Turn], outcome: Sequence[Hypothesis] = (), branches: int = 4) -> None:
        self.turns, self.outcome, self.branches = turns, list(outcome), branches
        self.heard: list[Any] = []

    def max_branches(self, config: GenerationConfig) -> int:
        return self.branches

    def run(self, context: Context) -> Conversation:
        for turn in self.turns:
            self.heard.append((yield turn))
        return self.outcome


__all__ = ["Commit", "Scripted", "SmallBeam", "drain", "mixing_toy", "request", "results", "run_alone", "toy"]

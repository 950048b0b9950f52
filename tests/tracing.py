"""Traces of toy requests, for tests of the recorder, of the trace and of its pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tests.toys import drain, request
from unspool.engine import Engine, Request
from unspool.records import Recording, TraceNode
from unspool.results.trace import Trace
from unspool.types import Failed, Finished, Output


class Letters:
    """A tokenizer whose token 0 is " a", 1 " b", and so on; the ids in `ends` stand as "<end>"."""

    def __init__(self, *ends: int) -> None:
        self._ends = ends

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        return "".join("<end>" if each in self._ends else f" {chr(97 + each)}" for each in ids)


def recorded(make: Any, prompt: Sequence[int], **options: Any) -> tuple[Recording, tuple[Output, ...]]:
    """Return what is recorded of a request on a fresh runtime, and its outputs. options: as for `request`."""
    return run(make, replace(request(prompt, **options), trace=True))


def run(make: Any, wanted: Request) -> tuple[Recording, tuple[Output, ...]]:
    """Run a request that wants a trace."""
    engine = Engine(make())
    engine.submit(wanted)
    (finished,) = (event for event in drain(engine) if isinstance(event, Finished | Failed))
    assert isinstance(finished, Finished), finished
    return finished.trace, finished.outputs


def trace_of(make: Any, prompt: Sequence[int], *, ends: Sequence[int] = (), **options: Any) -> Trace:
    """Return the trace of a toy request whose tokens are letters."""
    wanted = replace(request(prompt, **options), trace=True)
    recording, _ = run(make, wanted)
    letters = Letters(*ends)
    return Trace.from_recording(
        recording,
        letters,
        model="toy",
        strategy=wanted.strategy.name,
        seed=wanted.seed,
        config=wanted.config,
        prompt=letters.decode(prompt, skip_special_tokens=False),
    )


def tokens_to(nodes: Sequence[TraceNode], node: int) -> tuple[int, ...]:
    """Return the output tokens from the prompt to a node, walking up its parents."""
    found: list[int] = []
    at = nodes[node]
    while at.parent is not None:
        assert at.token is not None
        found.append(at.token)
        at = nodes[at.parent]
    return tuple(reversed(found))

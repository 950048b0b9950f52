"""A recording can be read while its request runs: it is the beginning of the final one."""

from __future__ import annotations

from dataclasses import replace

from tests.toys import mixing_toy, request
from unspool.engine import Engine
from unspool.records import Recording
from unspool.types import Finished


def test_a_recording_grows_to_the_final_one():
    engine = Engine(mixing_toy())
    number = engine.submit(replace(request((1, 2), num_beams=3, max_new_tokens=8), trace=True))
    parts: list[Recording] = []
    final: Recording | None = None
    while final is None:
        for event in engine.step():
            if isinstance(event, Finished):
                final = event.trace
        part = engine._recording(number)
        if part is not None:
            parts.append(part)
    assert len(parts) > 5
    for before, after in zip(parts, [*parts[1:], final], strict=True):
        assert len(before.steps) <= len(after.steps)
        for old, new in zip(before.nodes, after.nodes, strict=False):
            assert (old.id, old.parent, old.token, old.step) == (new.id, new.parent, new.token, new.step)
        for old_step, new_step in zip(before.steps, after.steps, strict=False):
            assert old_step.moves == new_step.moves
            assert len(old_step.rows) in (0, len(new_step.rows))
    assert engine._recording(number) is None, "the request is over"


def test_earlier_steps_can_be_left_out():
    engine = Engine(mixing_toy())
    number = engine.submit(replace(request((1, 2), num_beams=3, max_new_tokens=8), trace=True))
    for _ in range(5):
        engine.step()
    whole, rest = engine._recording(number), engine._recording(number, 3)
    assert whole is not None and rest is not None
    assert rest.steps == whole.steps[3:] and rest.steps[0].index == 3
    assert rest.nodes == whole.nodes


def test_a_request_without_a_trace_has_no_recording():
    engine = Engine(mixing_toy())
    number = engine.submit(request((1, 2), max_new_tokens=8))
    engine.step()
    assert engine._recording(number) is None
    assert engine._recording(number + 1) is None

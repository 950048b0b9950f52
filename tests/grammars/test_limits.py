"""Grammars that reach a limit while they run end their own request, and no other."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.grammars.toys import request
from tests.text.tokenizers import byte_level
from tests.toys import drain, results
from unspool.engine import Engine, Request
from unspool.errors import OptionError
from unspool.runtimes.toy import ToyRuntime

HOSTILE: dict[str, dict[str, Any]] = {
    "nested repetitions": {"regex": "((a{1,100}){1,100}){1,100}"},
    "an ambiguous recursion": {"grammar": 'start: a\na: a a a | "a" | a? a? a? a?'},
    "a long way back": {"grammar": 'start: "a" start "a" | "a" start "aa" | "aa" start "a" | "a"'},
    "an exponential automaton": {"regex": "(.*a.{60}b.*)+c"},
    "an exponential pattern": {"json_schema": {"type": "string", "pattern": "^(a?){3000}a{3000}$"}},
}


def model() -> ToyRuntime:
    """Return a model that prefers texts of the letter a, and quotes."""
    tokenizer = byte_level()
    liked = {token for text in ("a", '"') for token in tokenizer(text, add_special_tokens=False)["input_ids"]}
    row = [50.0 if token in liked else 1.0 for token in range(len(tokenizer))]
    return ToyRuntime(lambda tokens: row, len(row), eos_token_ids=(tokenizer.eos_token_id,))


def neighbor() -> Request:
    options = {"do_sample": True, "seed": 2, "max_new_tokens": 40}
    return request((5, 6), tokenizer=byte_level(), regex="[a-z ]*", **options)


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}])
@pytest.mark.parametrize("name", HOSTILE)
def test_a_grammar_at_its_limit_harms_no_neighbor(name: str, strategy: dict[str, Any]) -> None:
    alone = Engine(model())
    number = alone.submit(neighbor())
    expected = results(drain(alone))[number]
    runtime = model()
    engine = Engine(runtime)
    first = engine.submit(neighbor())
    started = time.process_time()
    try:
        hostile = request((5,), tokenizer=byte_level(), max_new_tokens=60, **HOSTILE[name], **strategy)
    except OptionError:
        hostile = None  # refused before it runs
    assert time.process_time() - started < 2.0
    second = engine.submit(hostile) if hostile is not None else None
    found = results(drain(engine))
    assert found[first] == expected
    assert not runtime.cached
    if second is not None:
        outcome = found[second]
        assert isinstance(outcome, tuple | OptionError)
        if isinstance(outcome, OptionError):
            assert outcome.option in HOSTILE[name] and "large" in str(outcome)

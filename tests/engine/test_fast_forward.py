"""Fast-forward: tokens that a grammar forces are fed in one pass, and change neither tokens nor scores."""

from __future__ import annotations

from typing import Any

import pytest

from tests.grammars.toys import END, LETTERS, compiled, request, tokenizer_of
from tests.toys import drain, results
from unspool.engine import Engine
from unspool.protocols import Context, Processor
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Finished, Output

EOS = LETTERS.index(END)
VOCAB = len(LETTERS)


def weights(tokens: tuple[int, ...]) -> list[float]:
    state = 7
    for token in tokens:
        state = (state * 31 + token * 17 + 3) % 10007
    return [1.0 + (state * (index + 1) * 7919) % 23 for index in range(VOCAB)]


def model(**options: Any) -> ToyRuntime:
    return ToyRuntime(weights, VOCAB, eos_token_ids=(EOS,), **options)


def run(runtime: ToyRuntime, **options: Any) -> tuple[tuple[Output, ...], int]:
    """Return the outputs of one request, and its passes."""
    engine = Engine(runtime)
    number = engine.submit(request((3, 1), max_new_tokens=12, **options))
    events = drain(engine)
    assert not runtime.cached, "a sequence was left"
    outputs = results(events)[number]
    assert isinstance(outputs, tuple), outputs
    return outputs, next(event.passes for event in events if isinstance(event, Finished))


PATTERNS = ["d-d-d-", "(d-d|-d-)c-", "[ab]d-d[ab]d-d", "d(-d){3}|--"]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_sample_equals_the_first_of_two_which_have_no_fast_forward(pattern: str) -> None:
    for seed in range(5):
        (two, slow), (one, fast) = (
            run(model(), regex=pattern, do_sample=True, seed=seed, num_return_sequences=count) for count in (2, 1)
        )
        assert one[0] == two[0]
        assert fast < slow


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("options", [{}, {"guidance_scale": 1.5, "negative_prompt": (2,)}])
def test_greedy_search_equals_a_search_that_feeds_token_by_token(
    pattern: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, passes = run(model(), regex=pattern, **options)
    monkeypatch.setattr("unspool.processors.grammar.Grammar.forced_tokens", lambda *_: ())
    slow, plain = run(model(), regex=pattern, **options)
    assert fast == slow
    assert passes < plain == len(slow[0].token_ids)


def test_dola_reads_the_inner_layers_of_forced_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    def make() -> ToyRuntime:
        return model(inner=lambda tokens, layer: weights(tokens[-layer - 1 :]), num_layers=2)

    fast, passes = run(make(), regex="d-d-d-", dola_layers="low")
    monkeypatch.setattr("unspool.processors.grammar.Grammar.forced_tokens", lambda *_: ())
    slow, plain = run(make(), regex="d-d-d-", dola_layers="low")
    assert fast == slow and passes < plain


def test_a_text_of_one_way_takes_two_passes() -> None:
    """The prompt's pass chooses the first token. The second pass feeds all tokens, and the end needs no pass."""
    runtime = model()
    outputs, passes = run(runtime, regex="d-d-d-d-")
    assert [LETTERS[token] for token in outputs[0].token_ids] == [*"d-d-d-d-", END]
    assert passes == 2 and runtime.passes == [(2,), (8,)]


def test_forced_tokens_stop_at_the_length_limit() -> None:
    runtime = model()
    engine = Engine(runtime)
    number = engine.submit(request((3,), regex="(d-){9}", max_new_tokens=5))
    outputs = results(drain(engine))[number]
    assert isinstance(outputs, tuple) and len(outputs[0].token_ids) == 5
    assert sum(map(sum, runtime.passes)) <= 1 + 4


def test_a_beam_search_has_no_fast_forward() -> None:
    runtime = model()
    run(runtime, regex="[ab]d-d-", num_beams=2)
    assert all(length <= 2 for lengths in runtime.passes for length in lengths)


class Contrary(Processor):
    """Claims to force a token, and then forbids it."""

    name = "contrary"

    def start(self, context: Context) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + 1

    def apply(self, states: Any, scores: Any, keys: Any) -> Any:
        scores[:, 0] = float("-inf")
        return scores

    def forced_tokens(self, state: int, most: int) -> tuple[int, ...]:
        return (0, 0)[:most]


def test_a_wrong_promise_costs_a_pass_and_changes_nothing() -> None:
    from dataclasses import replace

    told = []
    for processor in (Contrary(), type("Honest", (Contrary,), {"forced_tokens": Processor.forced_tokens})()):
        runtime = model()
        engine = Engine(runtime)
        number = engine.submit(replace(request((3, 1), max_new_tokens=6), processors=(processor,)))
        told.append(results(drain(engine))[number])
        assert not runtime.cached
    assert told[0] == told[1]


def test_the_state_names_forced_tokens_up_to_the_end() -> None:
    from tests.processors.support import context

    tokenizer = tokenizer_of()
    state = compiled(tokenizer, regex="d-d[ab]").start(context((0, 0), vocab_size=VOCAB, eos=(EOS,)))
    assert [LETTERS[token] for token in state.forced(9)] == ["d", "-", "d"]
    assert len(state.forced(2)) == 2 and state.forced(0) == ()

"""What every Runtime must do, run on each of ours. A runtime of your own passes by being added to RUNTIMES."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from tests.tiny_models import tiny_model
from tests.toys import drain, mixing_toy, request, results
from unspool.engine import Engine
from unspool.protocols import Runtime
from unspool.runtimes.decoder import DecoderRuntime
from unspool.types import Feed, Output

PROMPT = (5, 3, 8, 1, 9, 4, 7, 2, 6, 11, 3, 5)


class Case(NamedTuple):
    make: Callable[[], Any]
    live: Callable[[Any], int]
    tolerance: float


def decoder(family: str, **options: Any) -> Case:
    make = lambda: DecoderRuntime(tiny_model(family), own=True, **options)  # noqa: E731
    return Case(make, lambda runtime: len(runtime._slots.live), 3e-5)


RUNTIMES = {
    "toy": Case(mixing_toy, lambda runtime: len(runtime.cached), 0.0),
    "gpt2": decoder("gpt2"),
    "llama": decoder("llama"),
    "llama-masked": decoder("llama", attention="masked"),
    "llama-unpacked": decoder("llama", pack=False),
    "gemma2": decoder("gemma2"),
}


@pytest.fixture(params=RUNTIMES)
def case(request: pytest.FixtureRequest) -> Case:
    return RUNTIMES[request.param]


def rows(runtime: Runtime, seq: int, tokens: Sequence[int], asked: Sequence[int]) -> torch.Tensor:
    return runtime.forward([Feed(seq=seq, tokens=tokens, asked=tuple(asked))]).logits


def close(case: Case, a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=case.tolerance)


def test_rows_come_feed_by_feed_in_float32(case: Case) -> None:
    runtime = case.make()
    found = runtime.forward(
        [
            Feed(seq=1, tokens=PROMPT[:3], asked=(0, 2)),
            Feed(seq=2, tokens=PROMPT[:4], asked=()),
            Feed(seq=3, tokens=PROMPT[:1], asked=(0,)),
        ]
    )
    assert found.logits.shape == (3, runtime.info.vocab_size) and found.logits.dtype == torch.float32
    assert found.hidden is None
    close(case, found.logits[0], found.logits[2])
    assert not torch.equal(found.logits[0], found.logits[1])


def test_chunks_of_any_size_give_the_rows_of_one_pass(case: Case) -> None:
    whole = rows(case.make(), 0, PROMPT, range(len(PROMPT)))
    for trial in range(4):
        runtime, start, pieces = case.make(), 0, []
        while start < len(PROMPT):
            count = random.Random(f"{trial} {start}").randint(1, 5)
            chunk = PROMPT[start : start + count]
            pieces.append(rows(runtime, 0, chunk, range(len(chunk))))
            start += count
        close(case, torch.cat(pieces), whole)


def test_company_does_not_change_a_row(case: Case) -> None:
    alone = rows(case.make(), 0, PROMPT, [len(PROMPT) - 1])
    runtime = case.make()
    others = [Feed(seq=n, tokens=PROMPT[n:], asked=(0,)) for n in range(1, 9)]
    runtime.forward(others[:4])
    found = runtime.forward([*others[4:], Feed(seq=0, tokens=PROMPT, asked=(len(PROMPT) - 1,))])
    close(case, found.logits[-1:], alone)


def test_a_fork_holds_the_same_and_then_goes_its_own_way(case: Case) -> None:
    runtime = case.make()
    rows(runtime, 0, PROMPT[:6], [])
    runtime.fork(0, 1)
    runtime.fork(1, 2)
    changed = rows(runtime, 1, (9, 9), [1])
    kept = rows(runtime, 0, PROMPT[6:], [5])
    close(case, kept, rows(case.make(), 0, PROMPT, [11]))
    close(case, changed, rows(case.make(), 0, PROMPT[:6] + (9, 9), [7]))
    runtime.release(0)
    close(case, rows(runtime, 2, PROMPT[6:], [5]), kept)


def test_truncate_says_what_is_left_and_the_rest_can_be_fed_again(case: Case) -> None:
    runtime = case.make()
    whole = rows(runtime, 0, PROMPT, [len(PROMPT) - 1])
    runtime.fork(0, 1)
    left = runtime.truncate(0, 5)
    assert 0 <= left <= 5
    close(case, rows(runtime, 0, PROMPT[left:], [len(PROMPT) - left - 1]), whole)
    close(case, rows(runtime, 1, (4,), [0]), rows(case.make(), 0, (*PROMPT, 4), [len(PROMPT)]))


def test_release_forgets_and_an_unknown_sequence_is_no_error(case: Case) -> None:
    runtime = case.make()
    runtime.release(77)
    rows(runtime, 0, PROMPT, [])
    runtime.release(0)
    assert case.live(runtime) == 0
    close(case, rows(runtime, 0, PROMPT[:4], [3]), rows(case.make(), 0, PROMPT[:4], [3]))


def test_hidden_states_come_where_they_are_asked(case: Case) -> None:
    found = case.make().forward([Feed(seq=0, tokens=PROMPT, asked=(3, 11), hidden=True)])
    assert found.hidden is not None and found.hidden.shape[0] == 2
    assert torch.isfinite(found.hidden).all()


def test_invariant_rows_are_bit_equal_in_any_company_and_any_chunks(case: Case) -> None:
    runtime = case.make()
    if not runtime.info.batch_invariant:
        pytest.skip(f"not promised: {runtime.info.path}")

    def feed(seq: int, tokens: Sequence[int], asked: tuple[int, ...]) -> Feed:
        return Feed(seq=seq, tokens=tokens, asked=asked, invariant=True)

    alone = runtime.forward([feed(0, PROMPT, (11,))]).logits
    runtime.forward([feed(1, PROMPT[:5], ()), Feed(seq=2, tokens=PROMPT, asked=(1,))])
    parts = runtime.forward([Feed(seq=2, tokens=(3, 3), asked=(1,)), feed(1, PROMPT[5:], (6,))]).logits
    assert torch.equal(parts[1:], alone)
    for step, token in enumerate(PROMPT[:6]):
        one = runtime.forward([feed(0, [token], (0,))]).logits
        crowd = [Feed(seq=10 + step * 40 + n, tokens=(n,), asked=(0,)) for n in range(step * 6)]
        other = runtime.forward([*crowd, feed(1, [token], (0,))]).logits[-1:]
        assert torch.equal(one, other)


def mixed() -> list[Any]:
    return [
        request(PROMPT, max_new_tokens=8),
        request(PROMPT[:3], do_sample=True, top_k=5, num_return_sequences=4, seed=1, max_new_tokens=9),
        request(PROMPT[4:6], temperature=1.2, seed=2, max_new_tokens=12, repetition_penalty=1.3),
        request(PROMPT[:1], max_new_tokens=5, no_repeat_ngram_size=2),
        request(PROMPT[:2], max_new_tokens=8, num_beams=4, num_return_sequences=3),
        request(PROMPT * 3, top_p=0.9, seed=3, max_new_tokens=4),
    ]


def run(case: Case, runtime: Any, requests: Sequence[Any], budget: int = 512) -> list[tuple[tuple[int, ...], ...]]:
    engine = Engine(runtime, max_batch_tokens=budget)
    numbers = [engine.submit(each) for each in requests]
    events = []
    while not engine.idle:
        events += engine.step()
        engine.check()
        if hasattr(runtime, "check"):
            runtime.check()
    assert case.live(runtime) == 0, "a slot stayed behind"
    found = results(events + drain(engine))
    texts = []
    for number in numbers:
        outputs = found[number]
        assert isinstance(outputs, tuple), outputs
        texts.append(tuple(output.token_ids for output in outputs if isinstance(output, Output)))
    return texts


def test_the_engine_writes_alone_what_it_writes_in_company_and_leaves_no_slot(case: Case) -> None:
    alone = [run(case, case.make(), [each])[0] for each in mixed()]
    runtime = case.make()
    for budget in (512, 5):
        assert run(case, runtime, mixed(), budget) == alone
    order = list(reversed(range(len(alone))))
    assert run(case, runtime, [mixed()[n] for n in order]) == [alone[n] for n in order]

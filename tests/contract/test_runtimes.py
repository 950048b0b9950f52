"""What every Runtime must do, run on each of ours. A runtime of your own passes by being added to RUNTIMES."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch

from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import Sourced, random_source, tiny_seq2seq
from tests.toys import drain, mixing_toy, request, results
from unspool.adapters import as_runtime
from unspool.engine import Engine
from unspool.protocols import Runtime
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Feed, Output, Rows

PROMPT = (5, 3, 8, 1, 9, 4, 7, 2, 6, 11, 3, 5)


class Case(NamedTuple):
    make: Callable[[], Any]
    live: Callable[[Any], int]
    tolerance: float


def decoder(family: str, **options: Any) -> Case:
    make = lambda: DecoderRuntime(tiny_model(family), owns_model=True, **options)  # noqa: E731
    return Case(make, lambda runtime: len(runtime._slots.live), 3e-5)


def chosen(family: str, **changes: Any) -> Case:
    """A family that the slot cache refuses, on the path that is chosen for it."""
    make = lambda: runtime_of(tiny_model(family, **changes), owns_model=True)  # noqa: E731
    return Case(make, lambda runtime: len(runtime._table.live), 1e-4)


LONG_ROPE = {
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0, 3.0, 4.0, 5.0],
        "original_max_position_embeddings": 8,
        "factor": 32.0,
    },
    "original_max_position_embeddings": 8,
    "sliding_window": None,
}


def sourced(family: str, **options: Any) -> Case:
    """A model that reads a source, the same one for every sequence."""
    make = lambda: Sourced(  # noqa: E731
        Seq2SeqRuntime(tiny_seq2seq(family), owns_model=True, **options), random_source(family)
    )
    return Case(make, lambda runtime: len(runtime.live), 3e-5)


def layered_toy() -> ToyRuntime:
    """A toy whose layers see the newest tokens alone: one more of them each."""
    look = lambda tokens, layer: mixing_toy()._probabilities(tokens[-layer - 1 :])  # noqa: E731
    return mixing_toy(inner=look, num_layers=2)


RUNTIMES = {
    "toy": Case(layered_toy, lambda runtime: len(runtime.cached), 0.0),
    "gpt2": decoder("gpt2"),
    "llama": decoder("llama"),
    "llama-masked": decoder("llama", attention="masked"),
    "llama-unpacked": decoder("llama", pack=False),
    "gemma2": decoder("gemma2"),
    "bloom": chosen("bloom"),
    "falcon": chosen("falcon"),
    "gpt_neo": chosen("gpt_neo"),
    "mamba": chosen("mamba"),
    "jamba": chosen("jamba"),
    "llama4": chosen("llama4"),
    "openai": chosen("openai"),
    "xlnet": chosen("xlnet"),
    "xlm": chosen("xlm"),
    "phi3-longrope": chosen("phi3", **LONG_ROPE),
    "t5": sourced("t5"),
    "bart": sourced("bart"),
    "bart-own": sourced("bart", attention="own"),
    "whisper": sourced("whisper"),
    "trocr": sourced("trocr"),
    "git": sourced("git"),
}


@pytest.fixture(params=RUNTIMES)
def case(request: pytest.FixtureRequest) -> Case:
    return RUNTIMES[request.param]


def rows(runtime: Runtime, seq: int, tokens: Sequence[int], asked: Sequence[int], **options: Any) -> torch.Tensor:
    return runtime.forward([Feed(seq=seq, tokens=tokens, asked=tuple(asked), **options)]).logits


def pieces_of(trial: int, tokens: Sequence[int] = PROMPT) -> list[Sequence[int]]:
    """Return the tokens in random pieces of 1 to 5."""
    pieces, start = [], 0
    while start < len(tokens):
        count = random.Random(f"{trial} {start}").randint(1, 5)
        pieces.append(tokens[start : start + count])
        start += count
    return pieces


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


@pytest.mark.parametrize("case", {**RUNTIMES, "rwkv": chosen("rwkv")}.values(), ids=[*RUNTIMES, "rwkv"])
def test_rows_can_be_used_where_gradients_are_recorded(case: Case) -> None:
    runtime = case.make()
    hidden = runtime.info.hidden_states
    found = runtime.forward([Feed(seq=0, tokens=PROMPT[:2], asked=(0, 1), hidden=hidden)])
    assert (found.hidden is not None) is hidden
    for each in (found.logits, found.hidden) if hidden else (found.logits,):
        assert not each.is_inference() and not each.requires_grad
        (each * torch.ones(each.shape[-1], requires_grad=True)).sum().backward()


def test_chunks_of_any_size_give_the_rows_of_one_pass(case: Case) -> None:
    whole = rows(case.make(), 0, PROMPT, range(len(PROMPT)))
    for trial in range(4):
        runtime = case.make()
        close(case, torch.cat([rows(runtime, 0, piece, range(len(piece))) for piece in pieces_of(trial)]), whole)


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


def recalling(case: Case) -> Any:
    """Return the runtime, if it can begin a sequence with what it holds."""
    runtime = case.make()
    if not as_runtime(runtime).has_prefix_caching:
        pytest.skip("a runtime need not be able to")
    return runtime


def test_what_is_recalled_is_as_good_as_fed(case: Case) -> None:
    runtime = recalling(case)
    whole = rows(case.make(), 0, (*PROMPT, 9), [len(PROMPT)])
    rows(runtime, 0, (*PROMPT, 4), [])
    assert runtime.match_prefix(1, (*PROMPT, 9), least=1, invariant=False) == len(PROMPT)
    close(case, rows(runtime, 1, (9,), [0]), whole)
    close(case, rows(runtime, 0, (3,), [0]), rows(case.make(), 0, (*PROMPT, 4, 3), [len(PROMPT) + 1]))
    runtime.release(0)
    runtime.release(1)
    count = runtime.match_prefix(2, PROMPT, least=1, invariant=False)
    assert 0 <= count <= len(PROMPT), "what is released may be forgotten"
    close(case, rows(runtime, 2, (*PROMPT, 9)[count:], [len(PROMPT) - count]), whole)


def test_where_less_is_cached_than_is_asked_for_nothing_is_opened(case: Case) -> None:
    runtime = recalling(case)
    assert runtime.match_prefix(1, PROMPT, least=1, invariant=False) == 0
    rows(runtime, 0, PROMPT[:6], [])
    assert runtime.match_prefix(1, PROMPT, least=7, invariant=False) == 0
    assert runtime.match_prefix(1, PROMPT, least=1, invariant=True) == 0, "computed in no invariant pass"
    assert runtime.match_prefix(1, (9, *PROMPT), least=1, invariant=False) == 0
    assert case.live(runtime) == 1
    close(case, rows(runtime, 1, PROMPT, [11]), rows(case.make(), 0, PROMPT, [11]))


def test_a_prefix_is_found_under_its_own_salt_only(case: Case) -> None:
    runtime = recalling(case)
    whole = rows(case.make(), 0, (*PROMPT, 9), [len(PROMPT)])
    runtime.forward([Feed(seq=0, tokens=PROMPT, asked=(), salt="a")])
    runtime.fork(0, 1)
    for salt in ("", "b"):
        assert runtime.match_prefix(2, (*PROMPT, 9), least=1, invariant=False, salt=salt) == 0
    runtime.release(0)
    assert runtime.match_prefix(2, (*PROMPT, 9), least=1, invariant=False, salt="b") == 0, "released or live"
    assert runtime.match_prefix(2, (*PROMPT, 9), least=1, invariant=False, salt="a") == len(PROMPT), "its fork lives"
    close(case, rows(runtime, 2, (9,), [0]), whole)
    assert runtime.match_prefix(3, PROMPT, least=1, invariant=False) == 0, "what begins with a salt keeps it"


def test_what_is_recalled_for_invariant_feeds_has_the_bits_of_one_that_computes_all(case: Case) -> None:
    runtime = recalling(case)
    if not runtime.info.batch_invariant:
        pytest.skip(f"not promised: {runtime.info.backend}")
    whole = rows(case.make(), 0, PROMPT, [11], invariant=True)
    for start in range(1, len(PROMPT)):
        runtime = case.make()
        company = Feed(seq=0, tokens=PROMPT, asked=(0,))
        runtime.forward([company, Feed(seq=1, tokens=PROMPT[:start], asked=(), invariant=True)])
        assert runtime.match_prefix(2, PROMPT, least=1, invariant=True) == start
        rest = Feed(seq=2, tokens=PROMPT[start:], asked=(11 - start,), invariant=True)
        assert torch.equal(runtime.forward([company, rest]).logits[1:], whole)


def shown(runtime: Runtime, seq: int, tokens: Sequence[int], **options: Any) -> Rows:
    return runtime.forward([Feed(seq=seq, tokens=tokens, asked=(len(tokens) - 1,), **options)])


def hidden_of(runtime: Runtime, seq: int, tokens: Sequence[int], **options: Any) -> torch.Tensor:
    found = shown(runtime, seq, tokens, hidden=True, **options).hidden
    assert found is not None and found.shape[0] == len(tokens) and found.dtype == torch.float32
    return found


def inner_of(runtime: Runtime, seq: int, tokens: Sequence[int], **options: Any) -> torch.Tensor:
    found = shown(runtime, seq, tokens, layers=(1, 0), **options).inner
    assert found is not None and found.shape == (2, runtime.info.vocab_size) and found.dtype == torch.float32
    return found


def test_hidden_states_are_those_of_all_tokens_of_the_feeds_that_want_them(case: Case) -> None:
    runtime = case.make()
    assert runtime.info.hidden_states
    found = runtime.forward(
        [
            Feed(seq=1, tokens=PROMPT[:3], asked=(), hidden=True),
            Feed(seq=2, tokens=PROMPT[:6], asked=(0, 5)),
            Feed(seq=3, tokens=PROMPT[:5], asked=(4,), hidden=True),
        ]
    )
    assert found.hidden is not None and found.hidden.shape[0] == 3 + 5 and found.inner is None
    close(case, found.hidden[:3], found.hidden[3:6])
    assert not torch.equal(found.hidden[0], found.hidden[1])
    close(case, found.logits, rows(case.make(), 0, PROMPT[:6], (0, 5, 4)))


def test_hidden_states_of_chunks_are_those_of_one_pass(case: Case) -> None:
    whole = hidden_of(case.make(), 0, PROMPT)
    for trial in range(3):
        runtime = case.make()
        close(case, torch.cat([hidden_of(runtime, 0, piece) for piece in pieces_of(trial)]), whole)


def looking_inside(case: Case) -> Any:
    """Return the runtime, if it says that inner layers can be had."""
    runtime = case.make()
    if runtime.info.num_layers is None:
        pytest.skip(f"not promised: {runtime.info.backend}")
    return runtime


def test_company_does_not_change_hidden_states_nor_inner_rows(case: Case) -> None:
    wanted: dict[str, Any] = {"hidden": True, "layers": (0, 1)}
    runtime = looking_inside(case)
    alone = shown(case.make(), 0, PROMPT, **wanted)
    others = [Feed(seq=n, tokens=PROMPT[n:], asked=(0,), hidden=n % 2 == 0, layers=(1,)) for n in range(1, 9)]
    runtime.forward(others[:4])
    found = runtime.forward([*others[4:], Feed(seq=0, tokens=PROMPT, asked=(len(PROMPT) - 1,), **wanted)])
    assert found.hidden is not None and alone.hidden is not None and found.inner is not None and alone.inner is not None
    close(case, found.hidden[-len(PROMPT) :], alone.hidden)
    close(case, found.inner[4:], alone.inner)


def test_inner_rows_come_asked_row_by_asked_row_in_the_order_the_layers_are_named(case: Case) -> None:
    runtime = looking_inside(case)
    assert runtime.info.num_layers >= 2
    found = runtime.forward(
        [
            Feed(seq=1, tokens=PROMPT[:4], asked=(1, 3), layers=(1, 0)),
            Feed(seq=2, tokens=PROMPT[:4], asked=(0, 1, 2)),
            Feed(seq=3, tokens=PROMPT[:4], asked=(3,), layers=(0,)),
            Feed(seq=4, tokens=PROMPT[:2], asked=(), layers=(0,)),
        ]
    ).inner
    assert found is not None and found.shape == (5, runtime.info.vocab_size) and found.dtype == torch.float32
    close(case, found[:2], inner_of(case.make(), 0, PROMPT[:2]))
    close(case, found[2:4], inner_of(case.make(), 0, PROMPT[:4]))
    close(case, found[4], found[3])
    assert not torch.equal(found[2], found[3])
    nothing = runtime.forward([Feed(seq=1, tokens=(5,), asked=(), layers=(0,))]).inner
    assert nothing is not None and nothing.shape == (0, runtime.info.vocab_size)


def test_inner_rows_do_not_depend_on_chunks(case: Case) -> None:
    whole = inner_of(looking_inside(case), 0, PROMPT)
    for trial in range(3):
        runtime = case.make()
        close(case, [inner_of(runtime, 0, piece) for piece in pieces_of(trial)][-1], whole)


def test_invariant_hidden_states_and_inner_rows_are_bit_equal_in_any_company_and_any_chunks(case: Case) -> None:
    runtime = case.make()
    if not runtime.info.batch_invariant:
        pytest.skip(f"not promised: {runtime.info.backend}")
    logits = rows(runtime, 0, PROMPT, [len(PROMPT) - 1], invariant=True)
    runtime.truncate(0, 0)
    whole = hidden_of(runtime, 0, PROMPT, invariant=True)
    runtime.truncate(0, 0)
    inner = torch.cat([inner_of(runtime, 0, [token], invariant=True) for token in PROMPT])
    crowd = [Feed(seq=10 + n, tokens=PROMPT[n:], asked=(0, 1), hidden=True, layers=(1,)) for n in range(5)]
    for trial in range(3):
        hidden, last = [], []
        for piece in pieces_of(trial):
            wanted = Feed(seq=1, tokens=piece, asked=(len(piece) - 1,), hidden=True, layers=(1, 0), invariant=True)
            found = runtime.forward([*crowd[:trial], wanted])
            assert found.hidden is not None and found.inner is not None
            hidden.append(found.hidden[-len(piece) :])
            last.append((sum(map(len, hidden)), found.inner[-2:]))
        assert torch.equal(torch.cat(hidden), whole) and torch.equal(found.logits[-1:], logits)
        for length, rows_there in last:
            assert torch.equal(rows_there, inner[2 * length - 2 : 2 * length])
        for seq in (1, 10, 11, 12, 13, 14):
            runtime.release(seq)
    runtime.truncate(0, 0)
    for token, row in zip(PROMPT, inner.split(2), strict=True):
        one = shown(runtime, 0, [token], layers=(1,), hidden=True, invariant=True)
        assert one.hidden is not None and one.hidden.shape[0] == one.logits.shape[0] == 1, "a row too many"
        assert one.inner is not None and torch.equal(one.inner, row[:1])


def test_invariant_rows_are_bit_equal_in_any_company_and_any_chunks(case: Case) -> None:
    runtime = case.make()
    if not runtime.info.batch_invariant:
        pytest.skip(f"not promised: {runtime.info.backend}")

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
        request(PROMPT[:4] * 2, prompt_lookup_num_tokens=3, sequence_bias={(5, 3): 9.0, (3, 8): 9.0}, max_new_tokens=6),
        request(PROMPT[2:4], num_beams=4, num_beam_groups=2, diversity_penalty=0.5, max_new_tokens=4),
        request(PROMPT[3:6], own={"negative_prompt": (7, 2)}, guidance_scale=1.5, num_beams=2,
                force_words_ids=[[9]], max_new_tokens=4),
        request(PROMPT[5:], strategy="stochastic_beam", num_beams=3, num_return_sequences=2, max_new_tokens=4),
    ]  # fmt: skip


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

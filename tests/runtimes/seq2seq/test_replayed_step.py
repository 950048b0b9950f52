"""A recorded decode step of a model with an encoder: the same bits as the modules, at any length, or not used."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.sampling import sampled
from tests.tiny_models import VOCAB_SIZE
from tests.tiny_seq2seq import FAMILIES, MAX_LENGTH, random_source, tiny_seq2seq
from unspool.runtimes.replay import replay as replay_module
from unspool.runtimes.replay.replay import Replay
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime
from unspool.runtimes.weights import packed_linear
from unspool.runtimes.weights.autotune import VARIABLE
from unspool.runtimes.wrap.probe import distance
from unspool.types import Feed, Seq, Source

OURS = sorted(FAMILIES.keys() - {"trocr", "git"})


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the first step, and try the replay on the first step of every size."""
    monkeypatch.setattr(replay_module, "patience", lambda rows: 0)
    monkeypatch.setattr(replay_module, "REPLAY_MIN_PASSES", 0)


def replay_of(runtime: Seq2SeqRuntime) -> Replay:
    replay = runtime._model.forward.replay
    assert replay is not None
    return replay


def without_replay(model: Any) -> Seq2SeqRuntime:
    runtime = Seq2SeqRuntime(model, owns_model=True)
    replay_of(runtime).obstacle = "not wanted"
    return runtime


def calls_of(runtime: Seq2SeqRuntime) -> list[None]:
    """Return a list that grows with every call of the decoder."""
    calls: list[None] = []
    runtime._model.module.get_decoder().register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def script(sources: Sequence[Source], seed: int) -> Iterator[list[Feed]]:
    """Yield passes of random company: new sequences, steps of one token, longer feeds, unasked rows."""
    choice = random.Random(seed)
    lengths: dict[Seq, int] = {}
    for step in range(60):
        feeds = []
        if len(lengths) < 5 and choice.random() < 0.4:
            feeds.append(Feed(seq=step, tokens=[3], asked=(0,), source=choice.choice(sources)))
            lengths[step] = 0
        for seq in [each for each, length in lengths.items() if each != step and length < MAX_LENGTH - 3]:
            tokens = [choice.randrange(4, VOCAB_SIZE) for _ in range(choice.choice((1, 1, 1, 1, 1, 2)))]
            feeds.append(Feed(seq=seq, tokens=tokens, asked=() if choice.random() < 0.1 else (len(tokens) - 1,)))
        choice.shuffle(feeds)
        for feed in feeds:
            lengths[feed.seq] += len(feed.tokens)
        if feeds:
            yield feeds


@pytest.mark.parametrize("family", sampled(OURS, 4))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_recorded_step_gives_the_bits_of_the_modules(family: str, dtype: torch.dtype) -> None:
    sources = [random_source(family, seed) for seed in (0, 1)]
    plain = without_replay(tiny_seq2seq(family, dtype=dtype))
    recorded = Seq2SeqRuntime(tiny_seq2seq(family, dtype=dtype), owns_model=True)
    for feeds in script(sources, seed=1):
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
    replay = replay_of(recorded)
    assert replay.obstacle == "" and len(replay._verified) > 5
    calls = calls_of(recorded)
    before = len(calls)
    recorded.forward([Feed(seq=900, tokens=[3], asked=(0,), source=sources[0])])
    encoding = len(calls) - before
    for token in range(4, 30):
        recorded.forward([Feed(seq=900, tokens=[token], asked=(0,))])
    assert len(calls) - before - encoding < 5, "verified sizes run without the modules"


def test_a_step_of_a_beam_search_is_replayed() -> None:
    """Beams share their source, and lie in slots between those of other sequences."""
    model = tiny_seq2seq("t5")
    plain, recorded = without_replay(tiny_seq2seq("t5")), Seq2SeqRuntime(model, owns_model=True)
    for runtime in (plain, recorded):
        runtime.forward([Feed(seq=1, tokens=[3], asked=(0,), source=random_source("t5"))])
        for child in (2, 3, 4):
            runtime.fork(1, child)
        runtime.release(2)
    for token in range(4, 40):
        feeds = [Feed(seq=seq, tokens=[token + seq], asked=(0,)) for seq in (4, 1, 3)]
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
    assert replay_of(recorded).obstacle == "" and replay_of(recorded)._verified


def test_new_weights_are_recorded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed layers hold other tensors after a change."""
    monkeypatch.setattr(packed_linear, "is_small", lambda *_: False)
    monkeypatch.setenv(VARIABLE, "native")
    model = tiny_seq2seq("bart", dtype=torch.bfloat16)
    runtime = Seq2SeqRuntime(model, owns_model=False)
    first, second = random_source("bart"), random_source("bart")
    runtime.forward([Feed(seq=1, tokens=[3], asked=(0,), source=first)])
    runtime.forward([Feed(seq=1, tokens=[7], asked=(0,))])
    assert replay_of(runtime)._program is not None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    runtime.forward([Feed(seq=2, tokens=[3], asked=(0,), source=second)])
    row = runtime.forward([Feed(seq=2, tokens=[7], asked=(0,))]).logits[0]
    with torch.no_grad():
        expected = model(**second.inputs, decoder_input_ids=torch.tensor([[3, 7]])).logits[0, -1]
    assert distance(row[None], expected[None].float()) < 0.05


def test_hidden_states_and_several_tokens_are_not_replayed() -> None:
    runtime = Seq2SeqRuntime(tiny_seq2seq("t5"), owns_model=True)
    calls = calls_of(runtime)
    runtime.forward([Feed(seq=1, tokens=[3], asked=(0,), source=random_source("t5"))])
    for _ in range(4):
        before = len(calls)
        rows = runtime.forward([Feed(seq=1, tokens=[5], asked=(0,), hidden=True)])
        assert rows.hidden is not None and len(calls) == before + 1
        runtime.forward([Feed(seq=1, tokens=[5, 6], asked=(0, 1))])
        assert len(calls) == before + 2


def test_a_model_that_branches_on_the_length_is_checked_again_as_it_grows() -> None:
    """The replay of short steps is not trusted for long ones."""
    model = tiny_seq2seq("t5")
    attention = model.decoder.block[0].layer[0].SelfAttention
    original = attention.compute_bias

    def other_bias(query_length: int, key_length: int, **options: Any) -> torch.Tensor:
        bias: torch.Tensor = original(query_length, key_length, **options)
        return bias if key_length < 16 else bias * 2

    runtime = Seq2SeqRuntime(model, owns_model=True)
    plain = without_replay(tiny_seq2seq("t5"))
    for each in (runtime, plain):
        each._model.module.decoder.block[0].layer[0].SelfAttention.compute_bias = other_bias
        each.forward([Feed(seq=1, tokens=[3], asked=(0,), source=random_source("t5"))])
    for token in range(4, 40):
        feeds = [Feed(seq=1, tokens=[token], asked=(0,))]
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    assert "other results" in replay_of(runtime).obstacle

"""A recorded step of a recurrent model: the same bits as the modules, or not used."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from tests.tiny_models import VOCAB_SIZE, tiny_model
from unspool.runtimes.generic.replayed_step import RecurrentSteps
from unspool.runtimes.generic.runtime import GenericRuntime
from unspool.runtimes.replay import replay as replay_module
from unspool.types import Feed


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record the first step, and try the replay on the first step of every size."""
    monkeypatch.setattr(replay_module, "patience", lambda rows: 0)
    monkeypatch.setattr(replay_module, "REPLAY_MIN_PASSES", 0)


def steps_of(runtime: GenericRuntime) -> RecurrentSteps:
    assert runtime._steps is not None
    return runtime._steps


def without_replay(family: str, dtype: torch.dtype = torch.float32) -> GenericRuntime:
    runtime = GenericRuntime(tiny_model(family, dtype=dtype), owns_model=False)
    runtime._steps = None
    return runtime


def calls_of(runtime: GenericRuntime) -> list[None]:
    """Return a list that grows with every call of the model."""
    calls: list[None] = []
    runtime._model.wrapped.module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


@pytest.mark.parametrize("family", ["mamba", "mamba2", "falcon_mamba"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_recorded_step_gives_the_bits_of_the_modules(family: str, dtype: torch.dtype) -> None:
    """Sequences fork, go back, part and meet again."""
    recorded = GenericRuntime(tiny_model(family, dtype=dtype), owns_model=False)
    plain, choice = without_replay(family, dtype), random.Random(1)
    live = [1]
    prompt = [Feed(seq=1, tokens=[5, 6, 7, 8], asked=(3,))]
    assert torch.equal(recorded.forward(prompt).logits, plain.forward(prompt).logits)
    for step in range(2, 60):
        if len(live) < 5 and choice.random() < 0.3:
            for runtime in (recorded, plain):
                runtime.fork(live[0], step)
            live.append(step)
        if len(live) > 2 and choice.random() < 0.2:
            gone = live.pop(choice.randrange(len(live)))
            for runtime in (recorded, plain):
                runtime.release(gone)
        chosen = choice.sample(live, choice.randint(1, len(live)))
        feeds = [Feed(seq=seq, tokens=[choice.randrange(3, VOCAB_SIZE)], asked=(0,)) for seq in chosen]
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
        recorded.check()
    replay = steps_of(recorded).replay
    assert replay.obstacle == "" and len(replay._verified) > 2
    calls = calls_of(recorded)
    recorded.forward([Feed(seq=live[0], tokens=[5], asked=(0,))])
    assert not calls, "a verified size runs without the modules"


def test_a_model_of_ours_is_recorded_though_it_reads_a_packed_weight() -> None:
    runtime = GenericRuntime(tiny_model("mamba"), owns_model=True)
    runtime.forward([Feed(seq=1, tokens=[5, 6, 7], asked=(2,))])
    for token in range(8, 12):
        runtime.forward([Feed(seq=1, tokens=[token], asked=(0,))])
    replay = steps_of(runtime).replay
    assert replay.obstacle == "" and replay._verified


def test_a_replayed_step_can_be_taken_back() -> None:
    """A replay changes copies of the states only, so that earlier ones stay."""
    recorded, plain = GenericRuntime(tiny_model("mamba"), owns_model=False), without_replay("mamba")
    for runtime in (recorded, plain):
        runtime.forward([Feed(seq=1, tokens=[5, 6, 7], asked=(2,))])
    for token in range(8, 20):
        step = [Feed(seq=1, tokens=[token], asked=(0,))]
        for runtime in (recorded, plain):
            runtime.fork(1, 2)
            runtime.forward([Feed(seq=2, tokens=[token + 1], asked=(0,))])
            runtime.release(2)
        assert torch.equal(recorded.forward(step).logits, plain.forward(step).logits)
    assert steps_of(recorded).replay._verified


@pytest.mark.parametrize("family", ["jamba", "bamba", "falcon_h1", "gptj", "rwkv"])
def test_growing_caches_and_experts_are_not_replayed(family: str) -> None:
    assert GenericRuntime(tiny_model(family), owns_model=False)._steps is None


def test_new_weights_act_at_once() -> None:
    model = tiny_model("mamba")
    runtime = GenericRuntime(model, owns_model=False)
    runtime.forward([Feed(seq=1, tokens=[5, 6], asked=())])
    for _ in range(3):
        runtime.forward([Feed(seq=1, tokens=[7], asked=(0,))])
    with torch.no_grad():
        model.backbone.layers[0].mixer.A_log = torch.nn.Parameter(model.backbone.layers[0].mixer.A_log * 0.5)
        model.backbone.layers[1].mixer.D.mul_(2)
    runtime.release(1)
    runtime.forward([Feed(seq=2, tokens=[5, 6], asked=())])
    row = runtime.forward([Feed(seq=2, tokens=[7], asked=(0,))]).logits[0]
    with torch.no_grad():
        torch.testing.assert_close(row, model(torch.tensor([[5, 6, 7]])).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_a_cache_that_counts_tokens_is_not_replayed() -> None:
    runtime = GenericRuntime(tiny_model("mamba"), owns_model=False)
    plain = without_replay("mamba")

    def count(_: Any, __: Any, output: Any) -> Any:
        output.cache_params.layers[0].count = getattr(output.cache_params.layers[0], "count", 0) + 1
        return output

    for each in (runtime, plain):
        each._model.wrapped.module.register_forward_hook(count)
        each.forward([Feed(seq=1, tokens=[5, 6], asked=())])
    for token in range(3, 9):
        feeds = [Feed(seq=1, tokens=[token], asked=(0,))]
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    assert runtime._caches[1].newest.stack.tree.layers[0].count == plain._caches[1].newest.stack.tree.layers[0].count

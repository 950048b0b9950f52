"""Subgraphs of kernel calls: the recorded commands give the bits of the calls, or are not used."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import fx

from tests.kernels.test_packed import made
from tests.runtimes.replay.test_replay import EXPERTS, runtime_over, script, without_recording
from tests.sampling import sampled
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from unspool.kernels import commands
from unspool.kernels.gate import gate
from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.kernels.packed import PackedWeight, linear
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.cache import SlotCache
from unspool.runtimes.replay import replay as replay_module
from unspool.runtimes.replay import subgraphs as module
from unspool.runtimes.replay.subgraphs import Subgraph, join_calls
from unspool.runtimes.weights.autotune import VARIABLE as FORM
from unspool.types import Feed

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Record and trust everything as soon as possible, and pack all layers."""
    monkeypatch.setattr(replay_module, "patience", lambda rows: 0)
    monkeypatch.setattr(module, "MIN_SUBGRAPH_PASSES", 1)
    monkeypatch.setenv(FORM, "native")


def subgraphs_of(runtime: DecoderRuntime) -> list[Subgraph]:
    recording = runtime._decoder_model._recorded
    assert recording is not None and recording._program is not None, recording and recording.obstacle
    return recording._program.subgraphs


def steps(seed: int, count: int, most: int = 6) -> Iterator[list[Feed]]:
    """Yield passes of one token for each of some sequences, the same number several times in turn."""
    rng = random.Random(seed)
    for turn in range(count):
        rows = 1 + turn // 8 % most
        yield [Feed(seq=seq, tokens=[rng.randrange(3, VOCAB_SIZE)], asked=(0,)) for seq in range(rows)]


# The tiny models have 2 layers, gemma3 has 4.
ONE_SUBGRAPH = ("gpt2", "llama", "qwen3", "gemma", "mistral", "gpt_neox", "phi", "phi3", "gemma2", "gemma3")


@pytest.mark.parametrize("family", ONE_SUBGRAPH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_one_call_of_the_library_runs_all_layers(family: str, dtype: torch.dtype) -> None:
    plain = without_recording(tiny_model(family, dtype=dtype))
    runtime = runtime_over(tiny_model(family, dtype=dtype), recorded=True, owns_model=True)
    (subgraph,) = subgraphs_of(runtime)
    num_layers = len(runtime._decoder_model.layout)
    assert sum(node.target == "attend" for node in subgraph.graph.nodes) == num_layers
    for feeds in steps(1, 60):
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    assert not subgraph.obstacle and len(subgraph._recorded) == 6
    assert all(recorded.is_trusted for recorded in subgraph._recorded.values())


@pytest.mark.parametrize("family", sampled(sorted(FAMILIES.keys() - EXPERTS), 5))
def test_random_passes_have_the_bits_of_the_model(family: str) -> None:
    """Prompts, several pools and single tokens in turn."""
    plain = without_recording(tiny_model(family))
    runtime = runtime_over(tiny_model(family), recorded=True, owns_model=True)
    for feeds in (*script(seed=7, steps=40), *steps(2, 40), *script(seed=8, steps=20)):
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    assert not any(each.obstacle for each in subgraphs_of(runtime))


def test_the_commands_run_instead_of_the_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_over(tiny_model("llama"), recorded=True, owns_model=True)
    for feeds in steps(1, 8):
        runtime.forward(feeds)
    (subgraph,) = subgraphs_of(runtime)
    monkeypatch.setattr(subgraph, "_calls", None)
    for feeds in steps(3, 8):
        assert runtime.forward(feeds).logits.isfinite().all()


def test_commands_with_other_results_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = without_recording(tiny_model("llama"))
    runtime = runtime_over(tiny_model("llama"), recorded=True, owns_model=True)
    move = commands.CommandBuffer.move

    def with_a_fault(self: Any, places: Any) -> None:
        places[-1][0] = places[0][0]  # the head reads the table of the cosines
        move(self, places)

    monkeypatch.setattr(commands.CommandBuffer, "move", with_a_fault)
    for feeds in steps(1, 30):
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    (subgraph,) = subgraphs_of(runtime)
    assert subgraph.obstacle == "the recorded commands gave other results" and not subgraph._recorded


def test_a_number_that_is_not_finite_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtime_over(tiny_model("llama"), recorded=True, owns_model=True)
    feed = [Feed(seq=1, tokens=[5], asked=(0,))]
    for _ in range(6):
        runtime.forward(feed)
    found: list[list[bool]] = []
    finite = SlotCache.finite_rows

    def noted(self: SlotCache) -> list[bool]:
        found.append(finite(self))
        return found[-1]

    monkeypatch.setattr(SlotCache, "finite_rows", noted)
    with torch.no_grad():
        runtime._decoder_model.module.get_input_embeddings().weight[9] = torch.nan
    rows = runtime.forward([Feed(seq=seq, tokens=[token], asked=(0,)) for seq, token in ((1, 5), (2, 9), (3, 6))])
    rows = runtime.forward([Feed(seq=seq, tokens=[token], asked=(0,)) for seq, token in ((4, 5), (5, 9), (6, 6))])
    assert rows.logits.isfinite().all(-1).tolist() == [True, False, True]
    assert found == [[True, False, True]] * 2


def test_the_recorded_call_runs_from_the_tokens_to_the_logits() -> None:
    """No call of PyTorch computes anything in a step of a Llama, also if rows are asked in another order."""
    model, plain = tiny_model("llama"), without_recording(tiny_model("llama"))
    runtime = runtime_over(model, recorded=True, owns_model=True)
    program = runtime._decoder_model._recorded._program  # type: ignore[union-attr]
    assert program is not None
    calls = [node.target for node in program.graph.nodes if node.op == "call_function"]
    names = {getattr(target, "__name__", "") for target in calls}
    assert names == {"position_tables", "getitem", "subgraph", "__getitem__"} and calls.count(*program.subgraphs) == 1
    for turn in range(20):
        tokens = (3 + turn, 9, 5 + turn)
        feeds = [Feed(seq=seq, tokens=[tokens[seq]], asked=(0,)) for seq in (2, 0, 1)]
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    assert any(each.is_trusted for each in program.subgraphs[0]._recorded.values())


def test_a_constant_with_new_memory_leaves_the_old_memory_to_the_commands() -> None:
    """Numbers can be out of date until `refresh`, but no command reads memory that was freed."""
    model = tiny_model("llama")
    runtime = runtime_over(model, recorded=True)
    feed = [Feed(seq=1, tokens=[9], asked=(0,))]
    for _ in range(8):
        runtime.forward(feed)
    (subgraph,) = subgraphs_of(runtime)
    (found,) = subgraph._recorded.values()
    embedding = model.get_input_embeddings().weight
    kept = [each for each in found._constants if each.data_ptr() == embedding.data_ptr()]
    assert len(kept) == 1
    embedding.data = torch.zeros_like(embedding)
    assert kept[0].data_ptr() != embedding.data_ptr() and kept[0].abs().sum() > 0
    assert runtime.forward(feed).logits.isfinite().all()


def test_few_sizes_stay_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_COMMAND_BUFFERS", 2)
    plain = without_recording(tiny_model("gpt2"))
    runtime = runtime_over(tiny_model("gpt2"), recorded=True, owns_model=True)
    for feeds in (*steps(1, 60), *steps(2, 60)):
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)
    assert len(subgraphs_of(runtime)[0]._recorded) == 2


def test_new_weights_are_used() -> None:
    """Packed layers, norms and biases read the parameters again."""
    model, other = tiny_model("gpt2"), tiny_model("gpt2")
    runtime = runtime_over(model, recorded=True)
    for feeds in steps(1, 8):
        runtime.forward(feeds)
    with torch.no_grad():
        for parameter in (*model.parameters(), *other.parameters()):
            parameter.mul_(1.25).add_(0.01)
    runtime.refresh()
    fresh = without_recording(other)
    for token in range(3, 60):
        feed = [Feed(seq=900, tokens=[token], asked=(0,))]
        assert torch.equal(runtime.forward(feed).logits, fresh.forward(feed).logits)
    assert all(each._recorded for each in subgraphs_of(runtime))


def test_without_kernels_nothing_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    monkeypatch.delenv(FORM)
    assert not subgraphs_of(runtime_over(tiny_model("llama"), recorded=True, owns_model=True))


class Made:
    """A graph of calls over x [n, 64], and its function with the calls joined."""

    def __init__(self, build: Any) -> None:
        self.weight = PackedWeight(made(64, 64))
        self.graph = fx.Graph()
        constant, x = self.graph.placeholder("weight"), self.graph.placeholder("x")
        x.meta = {"dtype": torch.float32, "shape": (3, 64)}
        self.graph.output(build(self.graph, constant, x))
        (self.subgraph,) = join_calls(self.graph, [self.weight], ())
        names = dict((code := self.graph.python_code("self")).globals)
        exec(code.src, names)
        self._run = names["forward"]

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._run(None, self.weight, x)  # type: ignore[no-any-return]


def chain(graph: fx.Graph, weight: fx.Node, x: fx.Node, between: Any = None) -> fx.Node:
    for turn in range(4):
        x = graph.call_function(linear, (x, weight, None))
        x = graph.call_function(gate, (x, "relu", None))
        x = x if between is None or turn != 2 else between(graph, x)
    return x


def in_turn(weight: PackedWeight, x: torch.Tensor) -> torch.Tensor:
    for _ in range(4):
        x = gate(linear(x, weight), "relu")
    return x


def test_results_are_copies_and_shapes_are_recorded_one_by_one() -> None:
    run = Made(chain)
    kept = []
    for turn in range(12):
        x = made(2 + turn % 2, 64, seed=turn)
        kept.append((run(x), in_turn(run.weight, x)))
    assert all(torch.equal(*pair) for pair in kept) and len(run.subgraph._recorded) == 2
    assert all(each.is_trusted for each in run.subgraph._recorded.values())


def test_a_copy_on_the_way_is_found() -> None:
    """A view that copies is no call of a kernel, so commands alone would read old numbers."""

    def swapped(graph: fx.Graph, x: fx.Node) -> fx.Node:
        turned = graph.call_function(torch.Tensor.transpose, (x, 0, 1))
        flat = graph.call_function(torch.Tensor.reshape, (turned, -1))
        return graph.call_function(torch.Tensor.view, (flat, -1, 64))

    run = Made(lambda *args: chain(*args, swapped))
    for turn in range(4):
        x = made(3, 64, seed=turn)
        once = gate(linear(gate(linear(gate(linear(x, run.weight), "relu"), run.weight), "relu"), run.weight), "relu")
        assert torch.equal(run(x), gate(linear(once.T.reshape(-1, 64), run.weight), "relu"))
    assert set(run.subgraph.refused.values()) == {"a call reads a tensor that no kernel has computed"}


def test_inputs_that_are_copied_by_a_call_are_found() -> None:
    run = Made(chain)
    for turn in range(4):
        x = made(64, 3, seed=turn).T
        assert torch.equal(run(x), in_turn(run.weight, x))
    assert set(run.subgraph.refused.values()) == {"a call reads a tensor that no kernel has computed"}


def test_another_thread_in_the_middle_runs_the_calls() -> None:
    run = Made(chain)
    for turn in range(4):
        run(made(3, 64, seed=turn))
    x = made(3, 64, seed=9)
    with run.subgraph._lock:
        assert torch.equal(run(x), in_turn(run.weight, x))
    assert torch.equal(run(x), in_turn(run.weight, x))


def test_a_result_that_is_a_constant_is_refused() -> None:
    graph, weight, rows = fx.Graph(), PackedWeight(made(64, 64)), made(2, 64, seed=3)
    packed, constant, x = (graph.placeholder(name) for name in ("weight", "constant", "x"))
    row = graph.call_function(torch.Tensor.__getitem__, (constant, 1))
    graph.output((chain(graph, packed, x), row))
    subgraph = Subgraph(graph, [weight, rows], None)
    for turn in range(4):
        x = made(3, 64, seed=turn)
        found, last = subgraph(x)
        assert torch.equal(found, in_turn(weight, x)) and torch.equal(last, rows[1])
    assert list(subgraph.refused.values()) == ["a result is a constant"]

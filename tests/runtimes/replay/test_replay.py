"""A recorded pass against the model's own: the same bits, or not used at all."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch.overrides import TorchFunctionMode

from tests.sampling import sampled
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_config, tiny_model
from unspool.runtimes.decoder.replayed_pass import SIZES, FlatPass, TracedCache
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.replay import replay as recorded_module
from unspool.runtimes.replay.operators import Unrecordable
from unspool.runtimes.replay.program import Program
from unspool.runtimes.replay.replay import STEP_SIZES, Replay, patience
from unspool.runtimes.replay.tracer import Tracer
from unspool.runtimes.weights import packed_linear
from unspool.runtimes.weights.autotune import VARIABLE
from unspool.runtimes.weights.trial import Form, Shape
from unspool.runtimes.wrap.wrapped import refresh
from unspool.types import Feed

EXPERTS = {"mixtral", "gpt_oss", "qwen3_moe"}


def runtime_over(model: Any, *, recorded: bool, owns_model: bool = False) -> DecoderRuntime:
    runtime = DecoderRuntime(model, owns_model=owns_model)
    if recorded:
        recording = runtime._decoder_model._recorded
        assert recording is not None
        recording.record(two_tokens(runtime))
    return runtime


def two_tokens(runtime: DecoderRuntime) -> FlatPass:
    """Return a pass over two tokens of one sequence."""
    model = runtime._decoder_model
    places = torch.tensor([[0, 1]])
    return FlatPass(model._logits, len(model.layout), None, places + 5, places, torch.tensor([1]))


def without_recording(model: Any) -> DecoderRuntime:
    runtime = DecoderRuntime(model, owns_model=True)
    runtime._decoder_model._recorded = runtime._decoder_model._recorded_invariant = None
    return runtime


def calls_of(runtime: DecoderRuntime) -> list[None]:
    """Return a list that grows with every call of the model."""
    calls: list[None] = []
    runtime._decoder_model.module.register_forward_pre_hook(lambda *_: calls.append(None))
    return calls


def script(seed: int, steps: int) -> Iterator[list[Feed]]:
    """Yield passes of random company: prompts in parts, single tokens, several asked rows, or none."""
    choice = random.Random(seed)
    live: list[int] = []
    for step in range(steps):
        if len(live) < 6 and choice.random() < 0.5:
            live.append(100 * seed + step)
        chosen = choice.sample(live, choice.randint(1, len(live))) if live else [0]
        feeds = []
        for seq in chosen:
            tokens = [choice.randrange(3, VOCAB_SIZE) for _ in range(choice.choice((1, 1, 1, 2, 5)))]
            asked = tuple(sorted(choice.sample(range(len(tokens)), choice.randint(0, len(tokens)))))
            feeds.append(Feed(seq=seq, tokens=tokens, asked=asked))
        yield feeds


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try the recording on the first pass of every size."""
    monkeypatch.setattr(recorded_module, "patience", lambda rows: 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("family", sampled(sorted(FAMILIES.keys() - EXPERTS), 5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_recorded_pass_gives_the_models_own_bits(family: str, dtype: torch.dtype) -> None:
    plain = without_recording(tiny_model(family, dtype=dtype))
    recorded = runtime_over(tiny_model(family, dtype=dtype), recorded=True, owns_model=True)
    for feeds in script(seed=1, steps=40):
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
    recording = recorded._decoder_model._recorded
    assert recording is not None and recording.obstacle == "", recording and recording.obstacle
    calls = calls_of(recorded)
    for _ in range(3):
        recorded.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in range(900, 937)])
    assert len(calls) == 1, "the first pass of a size is proven, the others need no model"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("form", ["plain", "native"])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_recorded_invariant_pass_gives_the_bits_of_the_modules(
    family: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain layers make one call per row in invariant passes."""
    monkeypatch.setenv(VARIABLE, form)
    recorded, expected = DecoderRuntime(tiny_model(family), owns_model=True), without_recording(tiny_model(family))
    assert recorded.info.batch_invariant
    recording = recorded._decoder_model._recorded_invariant
    assert recording is not None
    monkeypatch.setattr(recorded_module, "REPLAY_MIN_PASSES", 0)
    calls = calls_of(recorded)
    passes = list(script(seed=4, steps=40))
    for feeds in passes:
        invariant = [replace(feed, invariant=True) for feed in feeds]
        found = recorded.forward(invariant).logits
        assert torch.equal(found, expected.forward(invariant).logits)
    assert recording.obstacle == "" and recording._program is not None
    assert len(calls) < len(passes), "replays run without the modules"


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("family", ["ctrl", "opt", "llama"])
def test_a_recorded_pass_of_packed_and_plain_layers_gives_the_models_own_bits(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The plain layer behind the attention chooses its kernel by the strides."""

    def square_is_plain(shapes: Iterable[Shape]) -> dict[Shape, Form]:
        return {shape: "plain" if shape.in_features == shape.out_features else "native" for shape in shapes}

    monkeypatch.setattr(packed_linear, "is_small", lambda *_: False)
    monkeypatch.setattr(packed_linear, "best_forms", square_is_plain)
    recorded = runtime_over(tiny_model(family, dtype=torch.bfloat16), recorded=True, owns_model=True)
    for feeds in script(seed=1, steps=40):
        recorded.forward(feeds)
    recording = recorded._decoder_model._recorded
    assert recording is not None and recording.obstacle == ""


def test_short_texts_do_not_pay_for_a_recording() -> None:
    runtime = DecoderRuntime(tiny_model("gpt2"), owns_model=True)
    recording = runtime._decoder_model._recorded
    assert recording is not None
    calls = calls_of(runtime)
    for _ in range(24):
        runtime.forward([Feed(seq=1, tokens=[5], asked=(0,))])
    assert len(calls) == 24 and recording._program is None
    for _ in range(10):
        runtime.forward([Feed(seq=1, tokens=[5], asked=(0,))])
    assert recording._program is not None
    assert len(calls) == 24 + 2 + 1, "two tapes and one proof, nothing else"


def few_experts(family: str) -> Any:
    """Return a model of two experts: all are hit in most passes, and one alone in some."""
    if family == "dbrx":
        experts = {"ffn_hidden_size": 16, "hidden_size": 32, "moe_num_experts": 2, "moe_top_k": 1}
        attention = {"kv_n_heads": 2, "rope_theta": 10_000.0, "clip_qkv": 8.0}
        sizes = {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 256, "vocab_size": VOCAB_SIZE}
        config = transformers.DbrxConfig(**sizes, attn_config=attention, ffn_config=experts)
    else:
        config = tiny_config("mixtral", num_local_experts=2, num_experts_per_tok=1)
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config, experts_implementation="eager").eval()


@pytest.mark.parametrize("family", ["dbrx", "mixtral"])
def test_models_with_experts_are_not_recorded(family: str) -> None:
    model = few_experts(family)
    runtime = DecoderRuntime(model, owns_model=False)
    assert runtime._decoder_model._recorded is None
    # Nor could they be: the recorder refuses them by what their passes do.
    recording = Replay()
    with torch.inference_mode():
        recording.record(two_tokens(runtime))
    assert "values" in recording.obstacle and recording._program is None
    tokens = [3, 50, 9, 77, 12]
    runtime.forward([Feed(seq=1, tokens=tokens[:-1], asked=())])
    for _ in range(60):
        row = runtime.forward([Feed(seq=1, tokens=tokens[-1:], asked=(0,))]).logits[0]
        with torch.no_grad():
            torch.testing.assert_close(row, model(torch.tensor([tokens])).logits[0, -1], atol=1e-4, rtol=1e-4)
        tokens.append(int(row.argmax()))


@pytest.mark.parametrize("vocab_size", [2, 6])
@pytest.mark.parametrize("family", ["gpt2", "llama", "opt"])
def test_a_small_vocabulary_and_few_positions_are_recorded(family: str, vocab_size: int) -> None:
    lengths = {"n_positions": 8} if family == "gpt2" else {"max_position_embeddings": 8}
    model = tiny_model(family, vocab_size=vocab_size, **lengths)
    runtime = DecoderRuntime(model, owns_model=False)
    recording = runtime._decoder_model._recorded
    assert recording is not None
    for seq in range(30):
        row = runtime.forward([Feed(seq=seq, tokens=[1], asked=(0,))]).logits[0]
    assert recording._program is not None and recording.obstacle == ""
    with torch.no_grad():
        torch.testing.assert_close(row, model(torch.tensor([[1]])).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_sizes_that_come_once_are_not_tried() -> None:
    """A batch whose requests end one by one would otherwise pay for a second pass each time."""
    runtime = runtime_over(tiny_model("gpt2"), recorded=True, owns_model=True)
    recording = runtime._decoder_model._recorded
    assert recording is not None
    calls = calls_of(runtime)
    for count in range(60, 30, -1):
        runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in range(count)])
    assert len(calls) == 30 and not recording._verified
    for _ in range(40):
        runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in range(20)])
    assert len(calls) == 30 + patience(20) + 1


def test_dropout_that_does_nothing_is_left_out() -> None:
    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        states = F.dropout(ids.float(), p=0.1, training=False)
        states = F.dropout(torch.cat([states, states + 1]), p=0.5, training=False)
        return F.dropout(F.dropout(states, 1.0, training=True), 0.5, False)

    recording = record(run)
    program = recording._program
    assert program is not None and recording.obstacle == ""
    (kept,) = [node for node in program.graph.nodes if node.target is F.dropout]
    assert kept.kwargs["training"], "the one in training stays"
    assert torch.equal(program(*given(3, 3), 3, 3), run(*given(3, 3)))


def test_arguments_and_results_of_every_kind_are_recorded() -> None:
    class Scale(float):
        """A number that code cannot spell."""

    table, scale = torch.randn(80, 6, dtype=torch.float64), Scale(0.5)

    def run(_: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        states = table.T[:, ids[0]].mT.to(torch.device("cpu"), dtype=torch.float32) * scale
        best, index = states.max(dim=-1)
        lower, upper = torch.split(states, [2, 4], dim=-1)
        scores = torch.cat((*lower.unbind(-1), best, index.float(), *upper.chunk(2, -1)[0].unbind(-1)))
        scores = scores.masked_fill(scores < 0, float("-inf")).nan_to_num(nan=0.0, neginf=-1.0)
        return scores.view(-1, ids.shape[1])[None, ..., keep].contiguous(memory_format=torch.contiguous_format)

    recording = record(run)
    assert recording.obstacle == "" and recording._program is not None
    for size in SIZES[0], (1, 1), (40, 3):
        assert torch.equal(recording._program(*given(*size), *size), run(*given(*size)))


def test_attention_that_depends_on_the_number_of_rows_is_not_recorded() -> None:
    def run(cache: Any, ids: torch.Tensor, *_: Any) -> torch.Tensor:
        states = ids.float()[:, None, :, None]
        params = AttentionParams(scaling=1 / ids.shape[1], window=None, softcap=None, sinks=None)
        return cache.attend(states, *cache.update(states, states, 0), params)

    assert "an argument is" in record(run).obstacle


def test_new_weights_are_recorded_anew() -> None:
    model = tiny_model("llama")
    runtime = runtime_over(model, recorded=True)
    feed = [Feed(seq=1, tokens=[5, 6, 7, 8], asked=(0, 1, 2, 3))]
    runtime.forward(feed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    fresh = without_recording(tiny_model("llama"))
    with torch.no_grad():
        for parameter in fresh._decoder_model.module.parameters():
            parameter.mul_(1.0)
    feed = [Feed(seq=2, tokens=[5, 6, 7, 8], asked=(0, 1, 2, 3))]
    with torch.no_grad():
        expected = model(torch.tensor([[5, 6, 7, 8]])).logits[0]
    torch.testing.assert_close(runtime.forward(feed).logits, expected, atol=1e-4, rtol=1e-4)
    refresh(model)
    feed = [Feed(seq=3, tokens=[5, 6, 7, 8], asked=(0, 1, 2, 3))]
    torch.testing.assert_close(runtime.forward(feed).logits, expected, atol=1e-4, rtol=1e-4)


# --- what cannot be recorded, by passes that are no models ------------------------------------------------------------


def given(rows: int, asked: int) -> tuple[Any, torch.Tensor, torch.Tensor, torch.Tensor]:
    numbers = torch.arange(rows)[None]
    return None, numbers, numbers + 3, torch.arange(asked)


def record(run: Any) -> Replay:
    recording = Replay()
    recording.record(FlatPass(run, 0, *given(13, 7)))
    return recording


def replayed(recording: Replay, run: Any, rows: int, asked: int) -> torch.Tensor:
    found: torch.Tensor = recording.run(FlatPass(run, 0, *given(rows, asked)))
    return found


def test_sizes_are_told_apart() -> None:
    table = torch.randn(80, 6)

    def run(cache: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        states = table[ids[0]].view(2 * ids.shape[1], 3) * 2
        first, second = states.view(ids.shape[1], 6).chunk(2, dim=-1)
        first += torch.zeros(ids.shape[1], 1)
        unused = torch.ones(ids.shape[1])  # left out of the program
        assert unused is not None
        chosen = torch.cat((first, second), dim=-1)[keep]
        return chosen.reshape(keep.shape[0] * 3, 2).view(keep.shape[0], -1)[..., 1:5]

    recording = record(run)
    assert recording.obstacle == ""
    program = recording._program
    assert program is not None
    code = program.graph.python_code("self").src
    assert "3 * asked" in code or "asked * 3" in code, code
    assert "ones" not in code
    for rows, asked in ((1, 1), (4, 2), (9, 9), (64, 3)):
        assert torch.equal(program(*given(rows, asked), rows, asked), run(*given(rows, asked)))


def by_values(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() * (2.0 if ids.sum().item() > 3 else 1.0)


def by_truth(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() if ids.max() > 3 else -ids.float()


def by_list(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() * sum(ids[0].tolist())


def by_assignment(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    numbers = ids.float()
    numbers[0, 0] = 5.0
    return numbers


def by_number_of_rows(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() if ids.shape[1] < 12 else ids.float() + 1


def by_odd_numbers(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() + (ids.shape[1] + 1)


def by_nonzero(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    """As experts are found: with the recorded tokens all four are hit, with others fewer."""
    result = ids.float()
    for expert in F.one_hot(ids % 4, num_classes=4).sum((0, 1)).gt(0).nonzero():
        result = result + expert[0] * 10
    return result


def by_where(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    (even,) = torch.where(ids[0] % 2 == 0)
    return ids.float() + even.float().sum()


def by_mask(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() + ids[ids > 2].float().sum()


def by_masked_select(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() + ids.masked_select(ids > 2).float().sum()


def by_unique(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() + torch.unique(ids).float().mean()


def by_repeats(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() + ids[0].repeat_interleave(ids[0]).float().mean()


def by_a_number_as_index(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.float() + torch.arange(100.0)[ids.max()]


def by_numpy(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return torch.from_numpy(ids.numpy().astype("float32"))


@pytest.mark.parametrize(
    "run",
    [
        *(by_values, by_truth, by_list, by_assignment, by_number_of_rows, by_odd_numbers, by_numpy),
        *(by_nonzero, by_where, by_mask, by_masked_select, by_unique, by_repeats, by_a_number_as_index),
    ],
)
def test_what_a_list_of_calls_cannot_repeat_is_not_recorded(run: Any) -> None:
    recording = record(run)
    assert recording.obstacle and recording._program is None
    for size in ((3, 2), (20, 1)):
        assert torch.equal(replayed(recording, run, *size), run(*given(*size)))


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("kind", [RuntimeError, ValueError, IndexError, KeyError, AssertionError])
def test_a_replay_that_raises_gives_way_to_the_model(kind: type[Exception]) -> None:
    state = {"raises": False}

    class Calls(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if state["raises"] and func is torch.sin:
                raise kind("of a call within the replay")
            return func(*args, **(kwargs or {}))

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        was, state["raises"] = state["raises"], False
        result = torch.sin(ids[0].float())
        state["raises"] = was
        return result

    recording = record(run)
    for raises in (False, False, True, True):
        state["raises"] = raises
        with Calls():
            assert torch.equal(replayed(recording, run, 5, 5), torch.arange(5.0).sin())
    assert kind.__name__ in recording.obstacle and recording._program is None
    recording.forget()
    assert recording.obstacle, "it is not recorded again"


@pytest.mark.usefixtures("impatient")
def test_a_recording_that_gives_other_results_is_dropped() -> None:
    state = {"factor": 1.0}

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        return ids[0].float() * state["factor"]

    recording = record(run)
    assert torch.equal(replayed(recording, run, 5, 5), torch.arange(5.0))
    state["factor"] = 3.0
    assert torch.equal(replayed(recording, run, 6, 6), 3 * torch.arange(6.0))
    assert "other results for 6 tokens" in recording.obstacle
    assert torch.equal(replayed(recording, run, 5, 5), 3 * torch.arange(5.0))


def test_writes_are_kept_and_waste_is_not() -> None:
    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        ids.float().sin().cos()
        notes = torch.zeros(4)
        notes[1:].add_(1)
        return ids.float() + notes[2]

    recording = record(run)
    program = recording._program
    assert program is not None and "sin" not in program.graph.python_code("self").src
    assert torch.equal(program(*given(3, 3), 3, 3), run(*given(3, 3)))


LASTING = torch.zeros(80)


def by_counting(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    LASTING[:1].add_(1)
    return ids.float() + LASTING[0]


def by_changing_its_input(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return ids.view(-1).mul_(2).float()


def by_writing_out(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    torch.sin(ids.float()[0, 0], out=LASTING[0])
    return ids.float()


@pytest.mark.parametrize("run", [by_counting, by_changing_its_input, by_writing_out])
def test_a_pass_that_changes_lasting_tensors_is_not_recorded(run: Any) -> None:
    """It could not be repeated by the model if a replay fails half-way."""
    recording = record(run)
    assert "changes a tensor that outlives the pass" in recording.obstacle and recording._program is None


def test_every_pair_of_sizes_names_one_kind() -> None:
    pairs = {
        name: {(factor * getattr(SIZES[0], name), factor * getattr(SIZES[1], name)) for factor in range(1, 200_000)}
        for name in ("rows", "asked")
    }
    assert not pairs["rows"] & pairs["asked"]


def test_the_cache_is_called_in_place_and_in_order() -> None:
    class Spy:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
            self.calls.append(f"update {layer}")
            return key, value

        def attend(self, query: torch.Tensor, *_: Any) -> torch.Tensor:
            self.calls.append("attend")
            return query[0].transpose(0, 1) + 1

    def run(cache: Any, ids: torch.Tensor, *_: Any) -> torch.Tensor:
        states = ids.float()[:, None, :, None]
        for layer in range(2):
            key, value = cache.update(states, states * 2, layer)
            states = cache.attend(states, key, value, None).transpose(0, 1)[None]
        return states

    traces = []
    for size in SIZES:
        ids = torch.arange(size.rows)[None]
        traces.append(Tracer({"ids": ids}, size._asdict()))
        with traces[-1]:
            result = run(TracedCache(traces[-1], 2), ids)
        traces[-1].finish(result)
    program = Program(*traces)
    spy = Spy()
    ids = torch.arange(4)[None]
    found = program(spy, ids, 4, 4)
    assert spy.calls == ["update 0", "attend", "update 1", "attend"]
    assert torch.equal(found.flatten(), torch.arange(4.0) + 2)


def test_a_result_from_elsewhere_is_refused() -> None:
    tracer = Tracer({"ids": torch.zeros(1, 1)}, {})
    with pytest.raises(Unrecordable, match="not PyTorch's"):
        tracer.finish(torch.ones(2))


def test_every_pair_of_step_sizes_names_one_kind() -> None:
    pairs = [
        {(factor * getattr(STEP_SIZES[0], name), factor * getattr(STEP_SIZES[1], name)) for factor in range(1, 50_000)}
        for name in STEP_SIZES[0]._fields
    ]
    assert len(set.union(*pairs)) == sum(map(len, pairs))

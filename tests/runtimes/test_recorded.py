"""A recorded pass against the model's own: the same bits, or not used at all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.sampling import sampled
from tests.tiny_models import FAMILIES, VOCAB_SIZE, tiny_model
from unspool.runtimes import recorded as recorded_module
from unspool.runtimes.decoder import DecoderRuntime, refresh
from unspool.runtimes.program import SIZES, Program, Size
from unspool.runtimes.recorded import Recorded, patience
from unspool.runtimes.tape import Tape, TapedCache, Unrecordable
from unspool.types import Feed

EXPERTS = {"mixtral", "gpt_oss", "qwen3_moe"}


def runtime_over(model: Any, *, recorded: bool, own: bool = False) -> DecoderRuntime:
    runtime = DecoderRuntime(model, own=own)
    if recorded:
        recording = runtime._shell._recorded
        assert recording is not None
        recording.record(runtime._shell._logits, torch.device("cpu"))
    return runtime


def without_recording(model: Any) -> DecoderRuntime:
    runtime = DecoderRuntime(model, own=True)
    runtime._shell._recorded = None
    return runtime


def calls_of(runtime: DecoderRuntime) -> list[None]:
    """Return a list that grows with every call of the model."""
    calls: list[None] = []
    runtime._shell.module.register_forward_pre_hook(lambda *_: calls.append(None))
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
    monkeypatch.setattr(recorded_module, "patience", lambda size: 0)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("family", sampled(sorted(FAMILIES.keys() - EXPERTS), 5))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_recorded_pass_gives_the_models_own_bits(family: str, dtype: torch.dtype) -> None:
    plain = without_recording(tiny_model(family, dtype=dtype))
    recorded = runtime_over(tiny_model(family, dtype=dtype), recorded=True, own=True)
    for feeds in script(seed=1, steps=40):
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
    recording = recorded._shell._recorded
    assert recording is not None and recording.obstacle == "", recording and recording.obstacle
    calls = calls_of(recorded)
    for _ in range(3):
        recorded.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in range(900, 937)])
    assert len(calls) == 1, "the first pass of a size is proven, the others need no model"


def test_short_texts_do_not_pay_for_a_recording() -> None:
    runtime = DecoderRuntime(tiny_model("gpt2"), own=True)
    recording = runtime._shell._recorded
    assert recording is not None
    calls = calls_of(runtime)
    for _ in range(24):
        runtime.forward([Feed(seq=1, tokens=[5], asked=(0,))])
    assert len(calls) == 24 and not recording._programs
    for _ in range(10):
        runtime.forward([Feed(seq=1, tokens=[5], asked=(0,))])
    assert recording._programs
    assert len(calls) == 24 + 2 + 1, "two tapes and one proof, nothing else"


def test_experts_look_at_values_and_are_not_recorded() -> None:
    runtime = runtime_over(tiny_model("mixtral"), recorded=True, own=True)
    recording = runtime._shell._recorded
    assert recording is not None and recording.obstacle
    plain = without_recording(tiny_model("mixtral"))
    for feeds in script(seed=2, steps=10):
        assert torch.equal(runtime.forward(feeds).logits, plain.forward(feeds).logits)


def test_sizes_that_come_once_are_not_tried() -> None:
    """A batch whose requests end one by one would otherwise pay for a second pass each time."""
    runtime = runtime_over(tiny_model("gpt2"), recorded=True, own=True)
    recording = runtime._shell._recorded
    assert recording is not None
    calls = calls_of(runtime)
    for count in range(60, 30, -1):
        runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in range(count)])
    assert len(calls) == 30 and not recording._proven
    for _ in range(40):
        runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in range(20)])
    assert len(calls) == 30 + patience(Size(20, 20)) + 1


def test_dropout_that_does_nothing_is_left_out() -> None:
    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        states = F.dropout(ids.float(), p=0.1, training=False)
        states = F.dropout(torch.cat([states, states + 1]), p=0.5, training=False)
        return F.dropout(F.dropout(states, 0.0, training=True), 0.0, False)

    recording = record(run)
    program = recording._programs[0] if recording._programs else None
    assert program is not None and recording.obstacle == ""
    assert [f for f in program._names.values() if f is F.dropout] == [F.dropout], "the one in training stays"
    assert torch.equal(program(*given(3, 3)), run(*given(3, 3)))


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
        for parameter in fresh._shell.module.parameters():
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


def record(run: Any) -> Recorded:
    recording = Recorded(0)
    recording.record(run, torch.device("cpu"))
    return recording


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
    program = recording._programs[0] if recording._programs else None
    assert program is not None and "rows" in program.source and "asked" in program.source
    assert "ones" not in [getattr(value, "__name__", "") for value in program._names.values()]
    for rows, asked in ((1, 1), (4, 2), (9, 9), (64, 3)):
        assert torch.equal(program(*given(rows, asked)), run(*given(rows, asked)))


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


def by_numpy(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
    return torch.from_numpy(ids.numpy().astype("float32"))


@pytest.mark.parametrize(
    "run", [by_values, by_truth, by_list, by_assignment, by_number_of_rows, by_odd_numbers, by_numpy]
)
def test_what_a_list_of_calls_cannot_repeat_is_not_recorded(run: Any) -> None:
    recording = record(run)
    assert recording.obstacle and not recording._programs
    for size in ((3, 2), (20, 1)):
        assert torch.equal(recording.run(run, *given(*size)), run(*given(*size)))


@pytest.mark.usefixtures("impatient")
def test_a_recording_that_gives_other_results_is_dropped() -> None:
    state = {"factor": 1.0}

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        return ids[0].float() * state["factor"]

    recording = record(run)
    assert torch.equal(recording.run(run, *given(5, 5)), torch.arange(5.0))
    state["factor"] = 3.0
    assert torch.equal(recording.run(run, *given(6, 6)), 3 * torch.arange(6.0))
    assert "other results for 6 tokens" in recording.obstacle
    assert torch.equal(recording.run(run, *given(5, 5)), 3 * torch.arange(5.0))


def test_writes_are_kept_and_waste_is_not() -> None:
    notes = torch.zeros(4)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        ids.float().sin().cos()
        notes.add_(1)
        return ids.float() + notes[0]

    recording = record(run)
    program = recording._programs[0] if recording._programs else None
    assert program is not None and "sin" not in [getattr(f, "__name__", "") for f in program._names.values()]
    before = float(notes[0])
    program(*given(3, 3))
    assert float(notes[0]) == before + 1


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

    tapes = []
    for size in SIZES:
        ids = torch.arange(size.rows)[None]
        tape = Tape(ids)
        with tape:
            result = run(TapedCache(tape, 2), ids)
        tapes.append((tape.steps, tape.number_of(result)))
    program = Program((tapes[0][0], tapes[1][0]), tapes[0][1])
    spy = Spy()
    ids = torch.arange(4)[None]
    found = program(spy, ids, ids, ids[0])
    assert spy.calls == ["update 0", "attend", "update 1", "attend"]
    assert torch.equal(found.flatten(), torch.arange(4.0) + 2)


def test_a_result_from_elsewhere_is_refused() -> None:
    tape = Tape(torch.zeros(1))
    with pytest.raises(Unrecordable, match="not PyTorch's"):
        tape.number_of(torch.ones(2))

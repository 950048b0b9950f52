"""Operator fusion: the fused program has the bits of the plain one, and a wrong one is found."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from tests.runtimes.replay.test_replay import (
    given,
    record,
    replayed,
    runtime_over,
    script,
    two_tokens,
    without_recording,
)
from tests.tiny_models import tiny_model
from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.kernels.packed import PackedWeight, linear
from unspool.kernels.rows import add, gather, rms_norm, rotate, sum_lanes
from unspool.runtimes.replay import fusion
from unspool.runtimes.replay import replay as replay_module
from unspool.runtimes.replay.program import Program
from unspool.runtimes.weights.autotune import VARIABLE as FORM
from unspool.types import Feed

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try the recording on the first pass of every size, and pack all layers."""
    monkeypatch.setattr(replay_module, "patience", lambda rows: 0)
    monkeypatch.setenv(FORM, "native")


def fused_calls(program: Program | None) -> dict[str, int]:
    assert program is not None
    graphs = [program.graph, *(each.graph for each in program.subgraphs)]
    calls = [node for graph in graphs for node in graph.nodes if node.op == "call_function"]
    names = Counter(
        node.target.__name__ for node in calls if node.target in (add, gather, rms_norm, rotate) or is_rows(node.target)
    )
    return dict(names) | {"residual": sum(node.target is linear and node.args[2] is not None for node in calls)}


def is_rows(target: Any) -> bool:
    """Return whether a call reads rows of a packed weight."""
    return getattr(target, "__func__", None) is PackedWeight.rows


# The tiny models have 2 layers, gemma3 has 4. Per layer, Llama has 2 norms, 2 rotations and 2 residuals.
# The embeddings of GPT-2 and Gemma are tied to the head. Each rotary embedding has two tables, Gemma 3 has two of them.
EXPECTED = {
    "gpt2": {"residual": 4, "rows": 1, "gather": 2, "add": 1},
    "llama": {"rms_norm": 5, "rotate": 4, "residual": 4, "gather": 4},
    "gemma": {"rms_norm": 5, "rotate": 4, "residual": 4, "rows": 1, "gather": 3},
    "gemma3": {"rms_norm": 25, "rotate": 8, "residual": 0, "rows": 1, "gather": 5, "add": 8},
    "qwen3": {"rms_norm": 9, "rotate": 4, "residual": 4, "gather": 4},
    "gpt_neox": {"rotate": 4, "residual": 2, "gather": 4, "add": 2},
    "phi": {"rotate": 4, "residual": 2, "gather": 4, "add": 2},
}


@pytest.mark.parametrize("family", EXPECTED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_fused_pass_has_the_bits_of_the_model(family: str, dtype: torch.dtype) -> None:
    plain = without_recording(tiny_model(family, dtype=dtype))
    recorded = runtime_over(tiny_model(family, dtype=dtype), recorded=True, owns_model=True)
    recording = recorded._decoder_model._recorded
    assert recording is not None
    expected = EXPECTED[family] if sum_lanes() else {**EXPECTED[family], "rms_norm": 0}
    assert Counter(fused_calls(recording._program)) == Counter(expected)
    for feeds in script(seed=3, steps=25):
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
    assert Counter(fused_calls(recording._program)) == Counter(expected), "the fused program was trusted"


def test_a_fused_call_with_other_bits_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: Any) -> torch.Tensor:
        return rotate(*args) * 1.0001

    monkeypatch.setattr(fusion, "rotate", wrong)
    check_the_plain_program_takes_over(wrong)


def test_a_fused_call_that_raises_gives_way_to_its_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> torch.Tensor:
        raise ValueError("other strides")

    monkeypatch.setattr(fusion, "rotate", refused)
    check_the_plain_program_takes_over(refused)


def check_the_plain_program_takes_over(wrong: Any) -> None:
    plain = without_recording(tiny_model("llama"))
    recorded = runtime_over(tiny_model("llama"), recorded=True, owns_model=True)
    recording = recorded._decoder_model._recorded
    assert recording is not None and recording._program is not None
    graphs = [recording._program.graph, *(each.graph for each in recording._program.subgraphs)]
    assert any(node.target is wrong for graph in graphs for node in graph.nodes)
    for feeds in script(seed=2, steps=80):
        assert torch.equal(recorded.forward(feeds).logits, plain.forward(feeds).logits)
    assert recording.obstacle == "" and recording._verified
    # The module tree itself has norms of one call.
    assert fused_calls(recording._program) == {"residual": 0} | ({"rms_norm": 5} if sum_lanes() else {})


def test_without_kernels_nothing_is_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    monkeypatch.delenv(FORM)
    runtime = runtime_over(tiny_model("llama"), recorded=True, owns_model=True)
    recording = runtime._decoder_model._recorded
    assert recording is not None and fused_calls(recording._program) == {"residual": 0}


def test_new_weights_reach_folded_constants() -> None:
    """Gemma adds 1 to the weight of a norm, and the sum is computed once."""
    model, other = tiny_model("gemma"), tiny_model("gemma")
    runtime = runtime_over(model, recorded=True)
    for feeds in script(seed=1, steps=4):
        runtime.forward(feeds)
    with torch.no_grad():
        for parameter in (*model.parameters(), *other.parameters()):
            parameter.mul_(1.25)
    runtime.refresh()
    for feeds in script(seed=6, steps=2):
        runtime.forward(feeds)
    recording = runtime._decoder_model._recorded
    assert recording is not None
    recording.record(two_tokens(runtime))
    fresh = without_recording(other)
    for token in range(3, 13):
        feed = [Feed(seq=900, tokens=[token], asked=(0,))]
        assert torch.equal(runtime.forward(feed).logits, fresh.forward(feed).logits)
    assert fused_calls(recording._program)["residual"] == 4


WEIGHT = torch.linspace(-1, 1, 16)


def with_cube(states: torch.Tensor) -> torch.Tensor:
    return WEIGHT * (states * torch.rsqrt(states.pow(3).mean(-1, keepdim=True).abs() + 1e-6))


def with_sum(states: torch.Tensor) -> torch.Tensor:
    return WEIGHT * (states * torch.rsqrt(states.pow(2).sum(-1, keepdim=True) + 1e-6))


def over_columns(states: torch.Tensor) -> torch.Tensor:
    return WEIGHT * (states * torch.rsqrt(states.pow(2).mean(0, keepdim=True) + 1e-6))


def of_another(states: torch.Tensor) -> torch.Tensor:
    return WEIGHT * ((states + 1) * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6))


def with_many_weights(states: torch.Tensor) -> torch.Tensor:
    return states * 2 * (states * torch.rsqrt(states.pow(2).mean(-1, keepdim=True) + 1e-6))


def with_both_halves_turned(states: torch.Tensor) -> torch.Tensor:
    x = states[None, None]
    return (x * x.cos() + torch.cat((-x[..., 8:], -x[..., :8]), dim=-1) * x.sin())[0, 0]


def with_another_split(states: torch.Tensor) -> torch.Tensor:
    x = states[None, None]
    return (x * x.cos() + torch.cat((-x[..., 6:], x[..., :6]), dim=-1) * x.sin())[0, 0]


@pytest.mark.parametrize(
    "formula",
    [
        *(with_cube, with_sum, over_columns, of_another, with_many_weights),
        *(with_both_halves_turned, with_another_split),
    ],
)
def test_similar_formulas_are_not_fused(formula: Any) -> None:
    table = torch.randn(80, 16, generator=torch.Generator().manual_seed(0))

    def run(_: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return formula(table[ids[0]])[keep]

    recording = record(run)
    assert recording.obstacle == "" and fused_calls(recording._program) == {"residual": 0, "gather": 1}
    assert torch.equal(replayed(recording, run, 5, 3), run(*given(5, 3)))


def test_results_that_others_read_stay() -> None:
    table = torch.randn(80, 16, generator=torch.Generator().manual_seed(0))

    def run(_: Any, ids: torch.Tensor, positions: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        states = table[ids[0]]
        square = states.pow(2)
        mean = square.mean(-1, keepdim=True)
        normed = states * torch.rsqrt(mean + 1e-6)
        return (WEIGHT * normed + square + mean + normed)[keep]

    recording = record(run)
    assert recording._program is not None
    if sum_lanes():
        assert fused_calls(recording._program) == {"rms_norm": 1, "residual": 0, "gather": 1, "add": 1}
    assert torch.equal(recording._program(*given(5, 3), 5, 3), run(*given(5, 3)))

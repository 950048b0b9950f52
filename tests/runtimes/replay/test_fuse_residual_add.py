"""Sums that packed layers compute in a recorded pass: the same bits, and only where nothing else reads the product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.runtimes.replay.test_replay import given, record
from unspool.runtimes.replay import replay as recorded_module
from unspool.runtimes.replay.replay import Replay
from unspool.runtimes.weights.packed_linear import PackedLinear, packing_obstacle

pytestmark = [
    pytest.mark.skipif(bool(packing_obstacle()), reason=packing_obstacle() or "packing works"),
    pytest.mark.usefixtures("packed_layers"),
]

WIDTH = 384
Run = Callable[..., torch.Tensor]


def packed(seed: int, dtype: torch.dtype = torch.float32) -> PackedLinear:
    torch.manual_seed(seed)
    layer = PackedLinear(nn.Linear(WIDTH, WIDTH).to(dtype), keep=False)
    assert layer.form.packed
    return layer


def states(ids: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return (ids[..., None] + torch.linspace(0, 5, WIDTH)).sin().to(dtype)


def calls_in(recording: Replay, name: str) -> int:
    source, names = recording._programs[0].source, recording._programs[0]._names
    return sum(source.count(f" = {key}(") for key, value in names.items() if str(value).endswith(name))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorded_module, "patience", lambda size: 0)


@torch.inference_mode()
def same_bits(run: Run) -> Replay:
    recording = record(run)
    assert recording.obstacle == ""
    for rows in (4, 5, 16, 40):
        for _ in range(2):
            assert torch.equal(recording.run(run, *given(rows, 4)), run(*given(rows, 4)))
        assert recording._proven
    return recording


@pytest.mark.parametrize("is_first", [True, False])
def test_a_residual_sum_is_the_layer_s(is_first: bool) -> None:
    first, second = packed(0), packed(1)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        before = states(ids)
        middle = F.dropout(first(before), 0.1, training=False)
        middle = middle + before if is_first else before + middle
        return middle.add(second(middle.relu())).tanh()

    recording = same_bits(run)
    assert calls_in(recording, "_linear_pointwise.binary") == 2
    assert calls_in(recording, "_linear_pointwise") == 0


def test_two_layers_that_are_added_take_one_call_less() -> None:
    first, second = packed(0), packed(1)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        return (first(states(ids)) + second(states(ids))) + 1.5

    recording = same_bits(run)
    assert calls_in(recording, "_linear_pointwise.binary") == calls_in(recording, "_linear_pointwise") == 1


def test_a_product_that_is_read_twice_is_computed_by_itself() -> None:
    layer = packed(0)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        product = layer(states(ids))
        return (product + states(ids)) * product

    assert calls_in(same_bits(run), "_linear_pointwise.binary") == 0

    def returned(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        product = layer(states(ids))
        product + states(ids)
        return product

    assert calls_in(same_bits(returned), "_linear_pointwise.binary") == 0


def test_a_product_added_to_itself_and_a_scaled_sum_stay() -> None:
    layer, other = packed(0), packed(1)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        product = layer(states(ids))
        return torch.add(product + product, other(states(ids)), alpha=2)

    assert calls_in(same_bits(run), "_linear_pointwise.binary") == 0


def test_where_shapes_do_not_fit_the_plain_program_serves() -> None:
    layer, bias = packed(0), torch.linspace(-1, 1, WIDTH)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        return (layer(states(ids)) + bias).relu()

    recording = same_bits(run)
    assert calls_in(recording, "_linear_pointwise.binary") == 0 and calls_in(recording, "_linear_pointwise") == 1


def test_half_precision_would_round_otherwise_and_stays() -> None:
    layer = packed(0, torch.bfloat16)

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        return layer(states(ids, torch.bfloat16)) + states(ids, torch.bfloat16)

    assert calls_in(same_bits(run), "_linear_pointwise.binary") == 0


def test_an_activation_behind_the_layer_stays_in_front_of_the_sum() -> None:
    from unspool.runtimes.weights.packed_linear import Activation

    layer = packed(0)
    layer.activation = Activation(F.relu, "relu")

    def run(_: Any, ids: torch.Tensor, *__: Any) -> torch.Tensor:
        return layer(states(ids)) + states(ids)

    assert calls_in(same_bits(run), "_linear_pointwise.binary") == 0

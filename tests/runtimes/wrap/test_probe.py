"""The measure of all trials: rounding passes, and a fault in how a model is run does not, in any dtype."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from tests.sampling import sampled
from tests.tiny_models import FAMILIES, tiny_model
from unspool.errors import ModelError
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv import attention
from unspool.runtimes.wrap.probe import allowed_distance, distance


def test_the_distance_is_relative_to_the_spread_of_a_row() -> None:
    reference = torch.tensor([[100.0, 102.0], [0.0, 4.0]])
    assert distance(reference, reference) == 0
    assert distance(reference + torch.tensor([[0.5], [0.5]]), reference) == pytest.approx(0.5)
    assert distance(reference + torch.tensor([[0.0], [0.5]]), reference) == pytest.approx(0.25)
    assert distance(torch.ones(1, 3) * 2.5, torch.ones(1, 3) * 2) == pytest.approx(0.25)
    assert distance(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


@pytest.mark.parametrize("extra", [(), (2.0, 2.0, 2.0), (0.0, -math.inf, 4.0)], ids=["plain", "constant", "infinite"])
def test_the_distance_of_several_rows_is_that_of_the_farthest(extra: tuple[float, ...]) -> None:
    reference = torch.tensor([(0.0, 2.0, 4.0), (1.0, 0.0, 5.0), *([extra] if extra else [])])
    found = reference + torch.tensor([0.1, 0.2, 0.3])
    alone = [distance(*pair) for pair in zip(found.split(1), reference.split(1), strict=True)]
    assert distance(found, reference) == pytest.approx(max(alone)) and alone[0] != pytest.approx(alone[1])


def test_infinite_entries_must_be_the_same() -> None:
    reference = torch.tensor([[1.0, 3.0, -math.inf]])
    assert distance(reference + torch.tensor([1.0, 1.0, 0.0]), reference) == pytest.approx(1.0)
    assert distance(torch.tensor([[1.0, 3.0, 5.0]]), reference) == math.inf
    assert distance(reference[:, :2], reference) == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", sampled(list(FAMILIES), 10))
def test_families_pass_in_half_precision_with_room(family: str, dtype: torch.dtype, monkeypatch: Any) -> None:
    found: list[float] = []

    def noted(*pair: torch.Tensor) -> float:
        found.append(distance(*pair))
        return found[-1]

    monkeypatch.setattr("unspool.runtimes.wrap.probe.distance", noted)
    model = tiny_model(family, dtype=dtype)
    DecoderRuntime(model, owns_model=True)
    assert max(found) < allowed_distance(model) / 2


def without_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    run = DecoderModel._call

    def call(decoder_model: DecoderModel, *args: Any, **options: Any) -> torch.Tensor:
        layers = next(each for each in decoder_model.module.modules() if isinstance(each, nn.ModuleList))
        mlp = next(part for name, part in layers[-1].named_children() if "mlp" in name)
        handle = mlp.register_forward_hook(lambda module, args, output: torch.zeros_like(output))
        try:
            return run(decoder_model, *args, **options)
        finally:
            handle.remove()

    monkeypatch.setattr(DecoderModel, "_call", call)


def without_position(monkeypatch: pytest.MonkeyPatch) -> None:
    run = DecoderModel._call
    monkeypatch.setattr(
        DecoderModel,
        "_call",
        lambda decoder_model, cache, ids, positions, **options: run(
            decoder_model, cache, ids, positions.clamp(max=2), **options
        ),
    )


def with_wrong_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    params = attention.AttentionParams
    monkeypatch.setattr(attention, "AttentionParams", lambda scale, window, *rest: params(scale, 3, *rest))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("num_layers", [2, 12])
@pytest.mark.parametrize("fault", [without_layer, without_position, with_wrong_mask])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fault_in_a_pass_is_refused(
    family: str, num_layers: int, dtype: torch.dtype, fault: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"n_layer" if family == "gpt2" else "num_hidden_layers": num_layers}
    model = tiny_model(family, dtype=dtype, **changes)
    DecoderRuntime(model, owns_model=False)
    fault(monkeypatch)
    with pytest.raises(ModelError, match="other results on the slot cache"):
        DecoderRuntime(tiny_model(family, dtype=dtype, **changes), owns_model=False)

"""Packed linear layers against plain ones."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import tiny_model
from unspool.runtimes import linear
from unspool.runtimes.linear import PackedLinear, invariant_rows, pack_linears, packing_obstacle, rows_are_independent

pytestmark = pytest.mark.skipif(bool(packing_obstacle()), reason=packing_obstacle() or "packing works")


def layer_of(kind: str, dtype: torch.dtype, width: int, height: int) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    made = Conv1D(height, width) if kind == "Conv1D" else nn.Linear(width, height, bias=kind == "biased")
    return made.to(dtype)


@pytest.mark.parametrize("rows", [0, 1, 2, 5, 33])
@pytest.mark.parametrize("size", [(24, 7), (300, 500)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["biased", "bare", "Conv1D"])
@torch.no_grad()
def test_a_packed_layer_equals_the_plain_one(kind: str, dtype: torch.dtype, size: tuple[int, int], rows: int) -> None:
    plain = layer_of(kind, dtype, *size)
    packed = PackedLinear(plain, keep=False)
    inputs = torch.randn(1, rows, 2 * size[0]).to(dtype)[..., ::2]
    expected = plain(inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(packed(inputs), expected, atol=tolerance, rtol=tolerance)
    with invariant_rows():
        torch.testing.assert_close(packed(inputs), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(packed.weight, plain.weight)


@torch.no_grad()
def test_packed_rows_do_not_depend_on_how_many_there_are() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        packed = PackedLinear(layer_of("biased", dtype, 96, 160), keep=False)
        inputs = torch.randn(300, 96).to(dtype)
        with invariant_rows():
            together = packed(inputs)
            assert all(torch.equal(packed(inputs[:rows]), together[:rows]) for rows in (2, 3, 8, 65, 299))


def test_a_packed_layer_cannot_be_copied_pickled_or_saved_by_mistake() -> None:
    packed = PackedLinear(layer_of("biased", torch.float32, 8, 4), keep=True)
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(packed)
    assert list(packed.state_dict()) == ["bias"]


def test_repacking_takes_over_new_values() -> None:
    plain = layer_of("bare", torch.float32, 300, 500)
    packed = PackedLinear(plain, keep=True)
    with torch.no_grad():
        plain.weight.mul_(2)
        assert not torch.allclose(packed(torch.ones(1, 300)), plain(torch.ones(1, 300)), atol=1e-4)
        packed.repack()
        torch.testing.assert_close(packed(torch.ones(1, 300)), plain(torch.ones(1, 300)), atol=1e-4, rtol=1e-4)


def test_a_layer_used_in_two_places_is_packed_once() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert pack_linears(model, keep=True) == (1, 1, "")
    assert model[0] is model[2]


@pytest.mark.parametrize(
    ("model", "pack", "reason"),
    [
        (nn.Sequential(nn.Linear(4, 4)), False, "packing is off"),
        (nn.Sequential(nn.Linear(4, 4)).half(), True, "float16 weights cannot be packed"),
        (nn.Sequential(nn.Linear(4, 4, device="meta")), True, "for the CPU"),
    ],
)
def test_what_is_not_packed_is_said(model: nn.Module, pack: bool, reason: str) -> None:
    report = pack_linears(model, keep=False, pack=pack)
    assert report.packed == 0 and report.total == 1
    assert reason in str(report) and "0 of 1 linear layers packed" in str(report)


@pytest.mark.parametrize(("free", "packed"), [(127, 0), (128, 1), (None, 1)])
def test_auto_packs_beside_the_users_weights_while_memory_allows(
    monkeypatch: pytest.MonkeyPatch, free: int | None, packed: int
) -> None:
    monkeypatch.setattr(linear, "available_memory", lambda: free)
    assert pack_linears(nn.Sequential(nn.Linear(4, 4)), keep=True, pack="auto").packed == packed
    assert pack_linears(nn.Sequential(nn.Linear(4, 4)), keep=True, pack=True).packed == 1
    assert pack_linears(nn.Sequential(nn.Linear(4, 4)), keep=False, pack="auto").packed == 1


def test_matrices_outside_linear_layers_are_not_promised_to_be_independent() -> None:
    assert not rows_are_independent(tiny_model("mixtral"))
    model = tiny_model("llama")
    pack_linears(model, keep=False)
    assert rows_are_independent(model)

"""Packed linear layers against plain ones."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tests.tiny_models import tiny_model
from unspool.runtimes import forms, linear
from unspool.runtimes.forms import Form
from unspool.runtimes.invariance import invariant_rows
from unspool.runtimes.linear import PackedLinear, pack_linears, packing_obstacle, rows_are_independent

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
    assert pack_linears(model, keep=True)[:3] == (1, 1, "")
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


def formed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> Form:
    """Return what is chosen where a trial takes so long: 1 packed row, 4, 1 plain, 5 packed, 5 plain."""

    def fastest(works: Sequence[Callable[[], object]]) -> list[float]:
        for work in works:
            work()
        return list(seconds)

    monkeypatch.setattr(forms, "_fastest", fastest)
    monkeypatch.setattr(forms, "_FORMS", {})
    return forms.form_of(512, 512, torch.float32)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((2.0, 1.0, 3.0, 1.0, 3.0), Form(packed=True, least_rows=4)),
        ((1.0, 2.0, 3.0, 1.0, 3.0), Form(packed=True, least_rows=1)),
        ((0.95, 1.0, 3.0, 1.0, 3.0), Form(packed=True, least_rows=4)),  # hardly faster: noise may be as large
        ((2.0, 2.0, 1.0, 2.0, 1.0), Form(packed=False, least_rows=1)),
        ((2.0, 2.0, 1.0, 1.0, 2.0), Form(packed=True, least_rows=4)),  # plain loses with several rows
    ],
)
def test_the_fastest_form_is_chosen(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], expected: Form
) -> None:
    assert formed(monkeypatch, *seconds) == expected


def test_a_shape_is_measured_once_and_small_layers_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []
    monkeypatch.setattr(forms, "_FORMS", {})
    monkeypatch.setattr(forms, "_measured", lambda shape: measured.append(shape) or Form(True, 4))
    assert not forms.form_of(64, 64, torch.float32).packed
    for _ in range(2):
        forms.form_of(512, 512, torch.float32)
        forms.form_of(512, 50_000, torch.float32)
        forms.form_of(512, 60_000, torch.float32)  # as large as is worth trying, like the one before
    assert len(measured) == 2


@pytest.mark.parametrize("form", [Form(True, 4), Form(True, 1), Form(False, 1)], ids=str)
@torch.no_grad()
def test_whatever_the_form_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch, form: Form) -> None:
    monkeypatch.setattr(linear, "form_of", lambda *_: form)
    plain = layer_of("biased", torch.float32, 300, 500)
    packed = PackedLinear(plain, keep=False)
    for rows in (0, 1, 3, 4, 9):
        inputs = torch.randn(2, rows, 300)
        torch.testing.assert_close(packed(inputs), plain(inputs), atol=1e-5, rtol=1e-5)
    report = pack_linears(nn.Sequential(plain), keep=False)
    assert (report.packed, report.least_rows) == (int(form.packed), form.least_rows)
    assert ("faster as they are" in report.reason) is not form.packed


def test_plain_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not packing_obstacle()
    monkeypatch.setattr(linear, "form_of", lambda *_: Form(packed=True, least_rows=1))
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    pack = PackedLinear._pack

    def counting(self: PackedLinear, weight: torch.Tensor) -> object:
        alive.append(sum(weight() is not None for weight in weights))
        return pack(self, weight)

    monkeypatch.setattr(PackedLinear, "_pack", counting)
    pack_linears(model, keep=False)
    assert alive == [4, 3, 2, 1]
    assert not any(weight() for weight in weights)

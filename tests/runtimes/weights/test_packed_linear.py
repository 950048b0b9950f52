"""Packed linear layers against plain ones."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.errors import OptionError
from unspool.runtimes.weights import autotune as forms
from unspool.runtimes.weights import packed_linear as linear
from unspool.runtimes.weights.autotune import LinearPlan
from unspool.runtimes.weights.invariant_rows import invariant_rows
from unspool.runtimes.weights.packed_linear import PackedLinear, pack_linears, packing_obstacle

pytestmark = [
    pytest.mark.skipif(bool(packing_obstacle()), reason=packing_obstacle() or "packing works"),
    pytest.mark.usefixtures("unforced_layers"),
]


def layer_of(kind: str, dtype: torch.dtype, width: int, height: int) -> nn.Linear | Conv1D:
    torch.manual_seed(0)
    made = Conv1D(height, width) if kind == "Conv1D" else nn.Linear(width, height, bias=kind == "biased")
    return made.to(dtype)


@pytest.mark.parametrize("form", [forms.PLAIN, forms.PACKED], ids=["plain", "packed"])
@pytest.mark.parametrize("rows", [0, 1, 2, 5, 33])
@pytest.mark.parametrize("size", [(24, 7), (300, 500)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", ["biased", "bare", "Conv1D"])
@torch.no_grad()
def test_a_packed_layer_equals_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, size: tuple[int, int], rows: int, form: LinearPlan
) -> None:
    monkeypatch.setattr(linear, "best_plan", lambda *_: form)
    plain = layer_of(kind, dtype, *size)
    packed = PackedLinear(plain, keep=False)
    inputs = torch.randn(1, rows, 2 * size[0]).to(dtype)[..., ::2]
    expected = plain(inputs)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(packed(inputs), expected, atol=tolerance, rtol=tolerance)
    with invariant_rows():
        torch.testing.assert_close(packed(inputs), expected, atol=tolerance, rtol=tolerance)
    assert torch.equal(packed.weight, plain.weight)


def test_a_packed_layer_cannot_be_copied_pickled_or_saved_by_mistake() -> None:
    packed = PackedLinear(layer_of("biased", torch.float32, 8, 4), keep=True)
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(packed)
    assert list(packed.state_dict()) == ["bias"]


@pytest.mark.usefixtures("packed_layers")
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


def formed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> LinearPlan:
    """Return what is chosen where a trial takes so long: 1 packed row, 4, 1 plain, 5 packed, 5 plain."""

    def fastest(works: Sequence[Callable[[], object]]) -> list[float]:
        for work in works:
            work()
        return list(seconds)

    monkeypatch.setattr(forms, "_fastest", fastest)
    monkeypatch.setattr(forms, "_FORMS", {})
    return forms.best_plan(512, 512, torch.float32)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        ((2.0, 1.0, 3.0, 1.0, 3.0), LinearPlan(packed=True, least_rows=4)),
        ((1.0, 2.0, 3.0, 1.0, 3.0), LinearPlan(packed=True, least_rows=1)),
        ((0.95, 1.0, 3.0, 1.0, 3.0), LinearPlan(packed=True, least_rows=4)),  # hardly faster: noise may be as large
        ((2.0, 2.0, 1.0, 2.0, 1.0), LinearPlan(packed=False, least_rows=1)),
        ((2.0, 2.0, 1.0, 1.0, 2.0), LinearPlan(packed=True, least_rows=4)),  # plain loses with several rows
    ],
)
def test_the_fastest_form_is_chosen(
    monkeypatch: pytest.MonkeyPatch, seconds: tuple[float, ...], expected: LinearPlan
) -> None:
    assert formed(monkeypatch, *seconds) == expected


def test_a_shape_is_measured_once_and_small_layers_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[object] = []
    monkeypatch.setattr(forms, "_FORMS", {})
    monkeypatch.setattr(forms, "_measured", lambda shape: measured.append(shape) or LinearPlan(True, 4))
    assert not forms.best_plan(64, 64, torch.float32).packed
    for _ in range(2):
        forms.best_plan(512, 512, torch.float32)
        forms.best_plan(512, 50_000, torch.float32)
        forms.best_plan(512, 60_000, torch.float32)  # as large as is worth trying, like the one before
    assert len(measured) == 2


@pytest.mark.parametrize("form", [LinearPlan(True, 4), LinearPlan(True, 1), LinearPlan(False, 1)], ids=str)
@torch.no_grad()
def test_whatever_the_form_the_result_is_the_same(monkeypatch: pytest.MonkeyPatch, form: LinearPlan) -> None:
    monkeypatch.setattr(linear, "best_plan", lambda *_: form)
    plain = layer_of("biased", torch.float32, 300, 500)
    packed = PackedLinear(plain, keep=False)
    for rows in (0, 1, 3, 4, 9):
        inputs = torch.randn(2, rows, 300)
        torch.testing.assert_close(packed(inputs), plain(inputs), atol=1e-5, rtol=1e-5)
    report = pack_linears(nn.Sequential(plain), keep=False)
    assert (report.packed, report.least_rows) == (int(form.packed), form.least_rows)
    assert ("faster as they are" in report.reason) is not form.packed


@pytest.mark.parametrize(("choice", "packed"), [("plain", 0), ("packed", 3), ("auto", 2), ("", 2)])
@torch.no_grad()
def test_a_form_can_be_forced(monkeypatch: pytest.MonkeyPatch, choice: str, packed: int) -> None:
    """A small and two large layers; by their times, the first of these would stay plain."""
    monkeypatch.setenv(forms.VARIABLE, choice)
    monkeypatch.setattr(forms, "_FORMS", {})
    monkeypatch.setattr(
        forms,
        "_measured",
        lambda shape: forms.PLAIN if shape.out_features == 512 else LinearPlan(packed=True, least_rows=1),
    )
    model = nn.Sequential(nn.Linear(8, 512), nn.Linear(512, 512), nn.Linear(512, 300))
    inputs = torch.randn(3, 8)
    expected = model(inputs)
    report = pack_linears(model, keep=False)
    assert (report.packed, report.total) == (packed, 3)
    assert [type(layer) is PackedLinear for layer in model].count(True) == packed
    assert (f"UNSPOOL_LINEAR={choice}" in str(report)) is (choice in ("plain", "packed"))
    assert report.least_rows == (forms.PADDED_ROWS if choice == "packed" else 1)
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)
    assert not pack_linears(nn.Sequential(nn.Linear(8, 8)), keep=False, pack=False).packed


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(forms.VARIABLE, "dense")
    with pytest.raises(OptionError, match="UNSPOOL_LINEAR.*auto, plain, packed.*got 'dense'"):
        pack_linears(nn.Sequential(nn.Linear(8, 8)), keep=False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_trial_reads_weights_that_no_cache_holds(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(forms, "last_level_cache", lambda: 1 << 20)
    read: dict[str, list[torch.Tensor]] = {"plain": [], "packed": []}
    multiply, pack = F.linear, torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(F, "linear", lambda rows, weight: (read["plain"].append(weight), multiply(rows, weight))[1])
    packed: list[torch.Tensor] = []

    def packing(weight: torch.Tensor, rows: int) -> torch.Tensor:
        packed.append(pack(weight, rows))
        return packed[-1]

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", packing)
    works = forms._works(forms.Shape(256, 256, dtype, 1))
    for _ in range(40):
        for work in works:
            work()
    plain = {weight.data_ptr(): weight for weight in read["plain"]}
    size = 256 * 256 * dtype.itemsize
    assert len(plain) * size >= 1 << 20 and len(packed) == len(plain)
    numbers = {float(weight.float().std()) for weight in plain.values()}
    assert len(numbers) == 1 and min(numbers) > 0.5, "no zeros, which the system need not read"
    first = [weight.data_ptr() for weight in read["plain"]][: len(plain)]
    assert len(set(first)) == len(plain), "no weight comes again before all others"


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    assert forms.last_level_cache.__wrapped__(tmp_path) == 32 << 20
    for index, size in enumerate(("48K", "2048K", "24576K")):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n")
    assert forms.last_level_cache.__wrapped__(tmp_path) == 24 << 20
    (tmp_path / "index2" / "size").write_text("524288K\n")
    assert forms.last_level_cache.__wrapped__(tmp_path) == 64 << 20
    (tmp_path / "index2" / "size").write_text("much\n")
    assert forms.last_level_cache.__wrapped__(tmp_path) == 32 << 20


def test_plain_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not packing_obstacle()
    monkeypatch.setattr(linear, "best_plan", lambda *_: LinearPlan(packed=True, least_rows=1))
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

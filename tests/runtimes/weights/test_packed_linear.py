"""Packed linear layers against plain ones."""

from __future__ import annotations

import copy
import pickle
import weakref
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from unspool.errors import OptionError
from unspool.kernels.library import VARIABLE as KERNELS
from unspool.kernels.library import kernels, obstacle
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.weights import packed_linear as linear
from unspool.runtimes.weights.autotune import VARIABLE
from unspool.runtimes.weights.lazy_weight import LazyWeight
from unspool.runtimes.weights.packed_linear import PackedLinear, pack_linears
from unspool.runtimes.weights.trial import Form, Shape

pytestmark = [
    pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}"),
    pytest.mark.usefixtures("unforced_layers"),
]


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
    assert torch.equal(packed.weight, plain.weight)


@torch.no_grad()
def test_a_weight_that_is_read_in_every_pass_stays_plain() -> None:
    plain = layer_of("biased", torch.float32, 300, 500)
    packed = PackedLinear(plain, keep=False)
    for _ in range(5):
        assert type(packed.weight) is LazyWeight and torch.equal(packed.unpacked(), plain.weight)
    for _ in range(3):
        assert torch.equal(packed.weight * 1, plain.weight)
    assert type(packed.weight) is torch.Tensor and packed.weight is packed.weight
    assert torch.equal(packed.weight, plain.weight) and torch.equal(packed.unpacked(), plain.weight)


@torch.no_grad()
def test_a_weight_that_was_given_away_is_unpacked_three_times_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an embedding that shares it reads it."""
    packed, calls = PackedLinear(layer_of("bare", torch.float32, 30, 50), keep=False), list[None]()
    unpacked = PackedLinear.unpacked
    monkeypatch.setattr(PackedLinear, "unpacked", lambda self: (calls.append(None), unpacked(self))[1])
    weight = packed.weight
    for _ in range(6):
        assert torch.equal(weight * 1, packed.weight * 1)
    assert len(calls) == 3


def test_a_packed_layer_cannot_be_copied_pickled_or_saved_by_mistake() -> None:
    packed = PackedLinear(layer_of("biased", torch.float32, 8, 4), keep=True)
    for attempt in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            attempt(packed)
    assert list(packed.state_dict()) == ["bias"]


def test_repacking_takes_over_new_values() -> None:
    plain = layer_of("biased", torch.float32, 300, 500)
    packed = PackedLinear(plain, keep=True)
    with torch.no_grad():
        plain.weight.mul_(2)
        plain.bias.add_(1)
        inputs = torch.ones(1, 300)
        assert not torch.allclose(packed(inputs), plain(inputs), atol=1e-4)
        memory = packed._packed.memory
        packed.repack()
        torch.testing.assert_close(packed(inputs), plain(inputs), atol=1e-4, rtol=1e-4)
        assert packed._packed.memory is memory, "repacking needs no further memory"


def test_a_layer_used_in_two_places_is_packed_once() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    assert pack_linears(model, keep=True) == (1, 1, "")
    assert isinstance(model[0], PackedLinear) and model[0] is model[2]


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
    monkeypatch.setattr(linear, "_ALWAYS_FITS", 0)
    assert pack_linears(nn.Sequential(nn.Linear(4, 4)), keep=True, pack="auto").packed == packed
    assert pack_linears(nn.Sequential(nn.Linear(4, 4)), keep=True, pack=True).packed == 1
    assert pack_linears(nn.Sequential(nn.Linear(4, 4)), keep=False, pack="auto").packed == 1


def replaced_choice(monkeypatch: pytest.MonkeyPatch, *plain_heights: int) -> list[Shape]:
    """Replace the choice: layers with these numbers of outputs stay plain. Returns the shapes that are asked for."""
    seen: list[Shape] = []

    def best_forms(shapes: Iterable[Shape]) -> dict[Shape, Form]:
        seen.extend(shapes)
        return {shape: "plain" if shape.out_features in plain_heights else "native" for shape in seen}

    monkeypatch.setattr(linear, "best_forms", best_forms)
    return seen


@torch.no_grad()
def test_each_layer_has_the_form_of_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small and three large layers: the first of these stays plain, one is a `Conv1D`."""
    seen = replaced_choice(monkeypatch, 512)
    model = nn.Sequential(nn.Linear(8, 512), nn.Linear(512, 512), nn.Linear(512, 300), Conv1D(600, 300))
    inputs = torch.randn(3, 8)
    expected = model(inputs)
    report = pack_linears(model, keep=False)
    assert report[:2] == (3, 4) and report.reason == "some are faster as they are"
    assert [shape[:2] for shape in seen] == [(512, 512), (512, 300), (300, 600)], "a small layer needs no trial"
    assert [type(layer) for layer in model] == [PackedLinear, nn.Linear, PackedLinear, PackedLinear]
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("choice", ["plain", "native"])
@torch.no_grad()
def test_a_form_can_be_forced(monkeypatch: pytest.MonkeyPatch, choice: str) -> None:
    monkeypatch.setenv(VARIABLE, choice)
    kind = nn.Linear if choice == "plain" else PackedLinear
    model = nn.Sequential(nn.Linear(8, 512), nn.Linear(512, 512))
    inputs = torch.randn(3, 8)
    expected = model(inputs)
    report = pack_linears(model, keep=False)
    assert [type(layer) for layer in model] == [kind] * 2
    assert report == (2 if choice == "native" else 0, 2, f"UNSPOOL_LINEAR={choice}")
    assert (f"2 of 2 linear layers packed for {kernels().level}" in str(report)) is (choice == "native")
    torch.testing.assert_close(model(inputs), expected, atol=1e-5, rtol=1e-5)
    assert not pack_linears(nn.Sequential(nn.Linear(8, 8)), keep=False, pack=False).packed


def test_a_machine_without_kernels_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, "off")
    for choice in ("auto", "native"):
        monkeypatch.setenv(VARIABLE, choice)
        model = nn.Sequential(nn.Linear(512, 512), nn.Linear(8, 8))
        report = pack_linears(model, keep=False)
        assert report[:2] == (0, 2) and report.reason.startswith("UNSPOOL_KERNELS=off")
        assert {type(layer) for layer in model} == {nn.Linear}


@torch.no_grad()
@pytest.mark.parametrize("form", ["plain", "native"])
def test_plain_parameters_of_ours_are_copied_and_others_stay(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packed layer keeps its bias; an embedding that shares its weight reads the packed one."""
    monkeypatch.setenv(VARIABLE, form)
    copied: list[torch.Size] = []
    copy_weight = HugePages.copy

    def copying(self: HugePages, tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tensor.shape)
        return copy_weight(self, tensor)

    monkeypatch.setattr(HugePages, "copy", copying)
    embedding = nn.Embedding(900, 800)
    head = nn.Linear(800, 900, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, nn.Linear(800, 800), head)
    expected = model(torch.arange(7))
    for pack, keep in ((True, True), (False, False)):
        another = copy.deepcopy(model)
        parameters = list(another.parameters())
        addresses = [parameter.data_ptr() for parameter in parameters]
        pack_linears(another, keep=keep, pack=pack)
        assert not copied and [parameter.data_ptr() for parameter in parameters] == addresses
    pack_linears(model, keep=False)
    assert copied == ([(900, 800), (800, 800), (800,)] if form == "plain" else [(800,)])
    assert model[0] is embedding and (form == "native" or head.weight is embedding.weight), "tied weights stay tied"
    assert (type(embedding.weight) is LazyWeight) is (form == "native")
    torch.testing.assert_close(model(torch.arange(7)), expected, atol=1e-3, rtol=1e-4)


def test_an_unknown_form_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "dense")
    with pytest.raises(OptionError, match="UNSPOOL_LINEAR.*auto, plain, native.*got 'dense'"):
        pack_linears(nn.Sequential(nn.Linear(8, 8)), keep=False)


def test_plain_weights_are_freed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "native")
    model = nn.Sequential(*(nn.Linear(8, 8) for _ in range(4)))
    weights = [weakref.ref(layer.weight) for layer in model]
    alive: list[int] = []
    pack = PackedLinear._pack

    def counting(self: PackedLinear, weight: torch.Tensor, allocate: Callable[[int], torch.Tensor]) -> None:
        alive.append(sum(weight() is not None for weight in weights))
        pack(self, weight, allocate)

    monkeypatch.setattr(PackedLinear, "_pack", counting)
    pack_linears(model, keep=False)
    assert alive == [4, 3, 2, 1]
    assert not any(weight() for weight in weights)

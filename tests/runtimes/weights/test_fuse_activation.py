"""Activations that packed layers apply themselves, against the modules as they were."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from transformers import GPT2Config, LlamaConfig
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP
from transformers.models.llama.modeling_llama import LlamaMLP

from unspool.runtimes.weights.autotune import LinearPlan
from unspool.runtimes.weights.batch_invariance import RowByRow, batch_invariance
from unspool.runtimes.weights.fuse_activation import (
    FusedActivation,
    _kind_of,
    fuse_activations,
    parted,
    replace_activations,
)
from unspool.runtimes.weights.invariant_rows import invariant_rows
from unspool.runtimes.weights.packed_linear import (
    NO_ACTIVATION,
    PackedLinear,
    pack_linears,
    packing_obstacle,
)

pytestmark = [
    pytest.mark.skipif(bool(packing_obstacle()), reason=packing_obstacle() or "packing works"),
    pytest.mark.usefixtures("packed_layers"),
]

WIDTH = 384


def gpt2_mlp(activation: str) -> nn.Module:
    config = GPT2Config(n_embd=WIDTH, n_head=2, activation_function=activation)
    return GPT2MLP(4 * WIDTH, config)


def llama_mlp(activation: str) -> nn.Module:
    return LlamaMLP(LlamaConfig(hidden_size=WIDTH, intermediate_size=3 * WIDTH, hidden_act=activation))


def packed(model: nn.Module) -> nn.Module:
    pack_linears(model, keep=False)
    return model


def joined_layers(model: nn.Module) -> list[str]:
    return [
        name
        for name, child in model.named_modules()
        if isinstance(child, PackedLinear) and child.activation is not NO_ACTIVATION
    ]


@pytest.mark.parametrize("is_plain_form", [False, True], ids=["packed", "plain"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "activation", ["gelu_new", "gelu_pytorch_tanh", "gelu", "relu", "silu", "gelu_fast", "gelu_accurate"]
)
@pytest.mark.parametrize(("make", "layer"), [(gpt2_mlp, "c_fc"), (llama_mlp, "gate_proj")])
@torch.inference_mode()
def test_a_joined_activation_gives_the_same(
    make: Any, layer: str, activation: str, dtype: torch.dtype, is_plain_form: bool
) -> None:
    torch.manual_seed(0)
    model = make(activation).to(dtype).eval()
    expected_by = copy.deepcopy(model).float()
    packed(model)
    if is_plain_form:
        for child in model.modules():
            if isinstance(child, PackedLinear):
                child.form = LinearPlan(packed=False, least_rows=1)
                child._tensors = (
                    child._tensors[0],
                    child.unpacked().T if child._transposed else child.unpacked(),
                    child.bias,
                )
    replace_activations(model)
    assert fuse_activations(model) == 1
    assert joined_layers(model) == [layer]
    assert [type(child) for child in model.modules()].count(FusedActivation) == 1
    for rows in (1, 2, 4, 5, 40):
        inputs = torch.randn(1, rows, WIDTH).to(dtype)
        expected = expected_by(inputs.float())
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(model(inputs).float(), expected, atol=tolerance, rtol=tolerance)
    assert fuse_activations(model) == 0, "what is joined stays joined"


FUSABLE = {
    "gelu", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh", "gelu_pytorch_tanh", "relu",
    "silu", "swish",
}  # fmt: skip


@pytest.mark.parametrize("activation", [ACT2FN[name] for name in FUSABLE] + [nn.GELU(), nn.GELU("tanh")])
def test_the_table_holds_the_function_of_each_class(activation: nn.Module) -> None:
    kind, inputs = _kind_of(activation), torch.linspace(-6, 6, 97)
    assert kind is not None
    torch.testing.assert_close(kind.function(inputs), activation(inputs), atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - FUSABLE))
def test_other_activations_of_transformers_are_not_fused(name: str) -> None:
    assert _kind_of(ACT2FN[name]) is None


def test_a_module_of_an_unknown_class_is_not_called() -> None:
    class Counting(nn.Module):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            raise AssertionError("called")

    class MyReLU(nn.ReLU):
        """A subclass can compute something else."""

    assert _kind_of(Counting()) is None and _kind_of(MyReLU()) is None


@torch.inference_mode()
def test_fused_modules_can_compute_apart_again() -> None:
    model = packed(gpt2_mlp("gelu_new").eval())
    assert fuse_activations(model) == 1
    inputs, seen = torch.randn(1, 5, WIDTH), []
    model.act.register_forward_hook(lambda _, given, found: seen.append((given[0], found)))
    expected = model(inputs)
    with parted(model):
        torch.testing.assert_close(model(inputs), expected)
    assert torch.equal(model(inputs), expected)
    (fused, same), (before, after), _ = seen
    assert torch.equal(fused, same) and torch.equal(fused, after) is False
    torch.testing.assert_close(after, ACT2FN["gelu_new"](before))


@torch.inference_mode()
def test_joined_rows_are_free_of_their_company() -> None:
    model = packed(gpt2_mlp("gelu_new").eval())
    fuse_activations(model)
    invariance = batch_invariance(model)
    assert joined_layers(model) and invariance.obstacle == ""
    inputs = torch.randn(1, 70, WIDTH)
    with invariant_rows(), RowByRow(invariance.row_by_row):
        together = model(inputs)
        for rows in (2, 3, 17, 65):
            assert torch.equal(model(inputs[:, :rows]), together[:, :rows])


class Twofold(nn.Module):
    """Applies its activation to what it is given as well."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.act = nn.Linear(WIDTH, WIDTH), nn.ReLU()

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(self.fc(states)) + self.act(states)
        return result


class Between(Twofold):
    """Has something between the layer and the activation."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.act(self.fc(states) + 0.5)
        return result


class Choosy(Twofold):
    """Cannot be called with states alone."""

    def forward(self, states: torch.Tensor, *, more: torch.Tensor | None = None) -> torch.Tensor:
        assert more is not None
        result: torch.Tensor = self.act(self.fc(states))
        return result


@pytest.mark.parametrize("kind", [Twofold, Between, Choosy])
@torch.inference_mode()
def test_what_does_not_stand_behind_a_layer_is_left_alone(kind: type[Twofold]) -> None:
    model = kind()
    activation = model.act
    packed(model)
    assert fuse_activations(model) == 0
    assert model.act is activation and joined_layers(model) == []


@torch.inference_mode()
def test_a_layer_of_two_places_and_a_part_with_hooks_are_left_alone() -> None:
    first, second = (nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU()) for _ in range(2))
    second[0] = first[0]
    model = packed(nn.Sequential(first, second))
    assert fuse_activations(model) == 0
    hooked = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU("tanh"))
    hooked[1].register_forward_hook(lambda *_: None)
    assert fuse_activations(packed(hooked)) == 0
    alone = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU())
    assert fuse_activations(alone) == 0, "plain layers apply nothing"

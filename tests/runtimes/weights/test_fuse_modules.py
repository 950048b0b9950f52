"""LayerNorm and activations on kernels against the modules that they replace."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from transformers.activations import ACT2FN

from tests.kernels.test_packed import made
from unspool.kernels.library import VARIABLE, kernels, obstacle
from unspool.runtimes.weights.autotune import VARIABLE as FORM
from unspool.runtimes.weights.fuse_modules import KernelActivation, KernelLayerNorm, fuse_modules
from unspool.runtimes.weights.kernel_module import repack
from unspool.runtimes.weights.tanh_gelu import TanhGELU
from unspool.runtimes.wrap.model_copy import copy_bare

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

REPLACED = ("relu", "silu", "swish", "gelu", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh")
OTHERS = sorted(set(ACT2FN) - {*REPLACED, "gelu_python", "gelu_python_tanh"})


@pytest.mark.parametrize("module", [*map(ACT2FN.__getitem__, REPLACED), nn.GELU(), nn.GELU("tanh")], ids=repr)
@torch.inference_mode()
def test_an_activation_gives_the_same(module: nn.Module) -> None:
    model = nn.Sequential(module)
    assert fuse_modules(model) == 1 and isinstance(model[0], KernelActivation)
    inputs = 3 * made(1, 9, 64)
    torch.testing.assert_close(model(inputs), module(inputs), atol=1e-6, rtol=1e-5)
    assert torch.equal(model(inputs.double()), module(inputs.double())), "other dtypes run the module"
    assert fuse_modules(model) == 0


@pytest.mark.parametrize("name", OTHERS)
def test_other_activations_stay(name: str) -> None:
    model = nn.Sequential(ACT2FN[name])
    before = model[0]
    assert fuse_modules(model) == 0 and model[0] is before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_layer_norm_gives_the_same_with_the_same_parameters(dtype: torch.dtype) -> None:
    norm = nn.LayerNorm(64, dtype=dtype)
    norm.weight.copy_(made(64)), norm.bias.copy_(made(64, seed=1))
    model, inputs = nn.Sequential(norm), made(2, 5, 64, seed=2).to(dtype)
    assert fuse_modules(model) == 1 and isinstance(model[0], KernelLayerNorm)
    tolerance = {"atol": 1e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-2, "rtol": 2**-7}
    torch.testing.assert_close(model(inputs), norm(inputs), **tolerance)
    assert model[0].weight is norm.weight and model[0].bias is norm.bias
    norm.weight.mul_(2), norm.bias.add_(1)
    repack(model)
    torch.testing.assert_close(model(inputs), norm(inputs), **tolerance)


def test_a_copy_of_the_tree_shares_the_norm_and_nothing_pickles_it() -> None:
    model = nn.Sequential(nn.LayerNorm(64)).eval()
    fuse_modules(model)
    assert copy_bare(model)[0] is model[0]
    with pytest.raises(TypeError, match="cannot be copied or pickled"):
        copy.deepcopy(model)


def with_hook() -> nn.Module:
    norm = nn.LayerNorm(8)
    norm.register_forward_hook(lambda *_: None)
    return norm


@pytest.mark.parametrize(
    "norm",
    [with_hook(), nn.LayerNorm((4, 8)), nn.LayerNorm(8, elementwise_affine=False), nn.LayerNorm(8, dtype=torch.half)],
    ids=["hook", "two dimensions", "no weight", "float16"],
)
def test_other_norms_stay(norm: nn.Module) -> None:
    assert fuse_modules(nn.Sequential(norm)) == 0


def test_dropout_is_removed() -> None:
    model = nn.Sequential(nn.Dropout(0.5)).eval()
    assert fuse_modules(model) == 1 and type(model[0]) is nn.Identity


def test_a_norm_without_a_bias() -> None:
    norm = nn.LayerNorm(64, bias=False)
    model, inputs = nn.Sequential(norm), made(3, 64)
    assert fuse_modules(model) == 1
    torch.testing.assert_close(model(inputs), norm(inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("variable", "value"), [(VARIABLE, "off"), (FORM, "plain")])
def test_modules_stay_where_everything_is_to_be_plain(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    model = nn.Sequential(nn.LayerNorm(8), nn.ReLU(), ACT2FN["gelu"])
    assert fuse_modules(model) == 0


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate"])
@torch.inference_mode()
def test_without_kernels_activations_of_many_operators_have_few(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "off")
    model, inputs = nn.Sequential(ACT2FN[name]), 3 * made(1, 9, 64)
    assert fuse_modules(model) == 1 and isinstance(model[0], TanhGELU)
    torch.testing.assert_close(model(inputs), ACT2FN[name](inputs), atol=1e-6, rtol=1e-5)
    half = inputs.to(torch.bfloat16)
    torch.testing.assert_close(model(half), ACT2FN[name](half), atol=1e-2, rtol=1e-2)


def test_tanh_gelu_at_the_ends_of_float32() -> None:
    large = torch.tensor([-3e38, -1e20, -20.0, 0.0, 20.0, 1e20, 3e38])
    assert TanhGELU()(large).tolist() == large.clamp(min=0).tolist()
    assert TanhGELU()(torch.tensor([math.nan])).isnan().all()


def test_models_on_other_devices_stay() -> None:
    assert fuse_modules(nn.Sequential(nn.LayerNorm(8, device="meta"), nn.ReLU())) == 0

"""RMSNorm on our kernels against the modules that it replaces."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from unspool.kernels.library import kernels
from unspool.runtimes.weights.fuse_modules import fuse_modules
from unspool.runtimes.weights.kernel_module import repack
from unspool.runtimes.weights.kernel_rms_norm import KernelRMSNorm

needs_kernels = pytest.mark.skipif(kernels() is None, reason="needs the kernels")


class ClampedNorm(LlamaRMSNorm):
    """Differs from an RMSNorm in large numbers only."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.clamp(-100, 100))


class GatedNorm(LlamaRMSNorm):
    """Has a second input, which a caller can leave out."""

    def forward(self, hidden_states: torch.Tensor, gate: torch.Tensor | None = None) -> torch.Tensor:
        return super().forward(hidden_states if gate is None else hidden_states * gate)


def filled(norm: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    nn.init.normal_(norm.weight, 1.0, 0.3)
    return nn.Sequential(norm.to(dtype)).eval()


@needs_kernels
@pytest.mark.parametrize("make", [LlamaRMSNorm, T5LayerNorm])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_one_call_has_the_bits_of_the_operators(make: Callable[[int], nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = filled(make(96), dtype)
    original = copy.deepcopy(model)
    assert fuse_modules(model) == 1 and isinstance(model[0], KernelRMSNorm)
    for inputs in (torch.randn(2, 7, 96), torch.randn(7, 2, 96).transpose(0, 1), 1e5 * torch.randn(1, 1, 96)):
        assert model(inputs.to(dtype)).equal(original(inputs.to(dtype)))
    assert fuse_modules(model) == 0


@needs_kernels
@torch.inference_mode()
def test_inputs_of_another_dtype_run_on_the_original() -> None:
    model = filled(LlamaRMSNorm(32), torch.bfloat16)
    original = copy.deepcopy(model)
    fuse_modules(model)
    inputs = torch.randn(3, 32)
    assert model(inputs).equal(original(inputs))


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_new_values_of_the_weight_are_read(dtype: torch.dtype) -> None:
    model = filled(LlamaRMSNorm(32), dtype)
    original = nn.Sequential(model[0])
    fuse_modules(model)
    original[0].weight.mul_(2)
    repack(model)
    inputs = torch.randn(3, 32).to(dtype)
    assert model(inputs).equal(original(inputs))


@pytest.mark.parametrize("norm", [GemmaRMSNorm(32), GatedNorm(32), ClampedNorm(32), LlamaRMSNorm(4)])
def test_other_norms_stay(norm: nn.Module) -> None:
    model = filled(norm)
    assert fuse_modules(model) == 0 and model[0] is norm


def test_norms_with_hooks_stay() -> None:
    model = filled(LlamaRMSNorm(32))
    model[0].register_forward_hook(lambda *_: None)
    assert fuse_modules(model) == 0


@needs_kernels
def test_it_cannot_be_copied_or_pickled() -> None:
    model = filled(LlamaRMSNorm(32))
    fuse_modules(model)
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match="cannot be copied or pickled"):
            copied(model)

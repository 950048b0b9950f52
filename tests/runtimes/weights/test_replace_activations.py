"""Activations of one operator against the modules that they replace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import GPT2Config
from transformers.activations import ACT2FN
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from unspool.runtimes.weights.replace_activations import replace_activations

TANH_GELUS = ("gelu_new", "gelu_fast", "gelu_accurate")


@pytest.mark.parametrize("activation", TANH_GELUS)
@torch.inference_mode()
def test_one_operator_gives_the_same(activation: str) -> None:
    torch.manual_seed(0)
    model = GPT2MLP(256, GPT2Config(n_embd=64, n_head=2, activation_function=activation)).eval()
    original = copy.deepcopy(model)
    assert replace_activations(model) == 1 and isinstance(model.act, nn.GELU)
    inputs = 3 * torch.randn(1, 9, 64)
    torch.testing.assert_close(model(inputs), original(inputs), atol=1e-6, rtol=1e-5)
    assert replace_activations(model) == 0


@pytest.mark.parametrize("name", sorted(set(ACT2FN) - set(TANH_GELUS)))
def test_other_activations_stay(name: str) -> None:
    model = nn.Sequential(ACT2FN[name])
    before = model[0]
    assert replace_activations(model) == 0 and model[0] is before


def test_activations_with_hooks_stay() -> None:
    model = nn.Sequential(ACT2FN["gelu_new"])
    model[0].register_forward_hook(lambda *_: None)
    assert replace_activations(model) == 0

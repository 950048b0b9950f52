"""Walks of a module tree: the modules and tensors of PyTorch's own walks, in the same order."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.runtimes.module_tree import buffers_of, modules_in, parameters_of


def shared_tree() -> nn.Module:
    """A tree with a module, a parameter and a missing child in several places."""
    layer, tied = nn.Linear(3, 3), nn.Linear(3, 3)
    tied.weight = layer.weight
    tree = nn.Sequential(nn.Sequential(layer, nn.BatchNorm1d(3)), layer, tied)
    tree.register_module("missing", None)
    tree.register_parameter("absent", None)
    tree.register_buffer("none", None)
    tree.register_buffer("number", torch.ones(1))
    return tree


@pytest.mark.parametrize("make", [shared_tree, lambda: tiny_model("llama"), lambda: tiny_seq2seq("t5")])
def test_the_order_is_that_of_pytorch(make: Any) -> None:
    tree = make()
    modules = modules_in(tree)
    for found, expected in (
        (modules, tree.modules()),
        (parameters_of(modules), tree.parameters()),
        (buffers_of(modules), tree.buffers()),
    ):
        assert list(map(id, found)) == list(map(id, expected))

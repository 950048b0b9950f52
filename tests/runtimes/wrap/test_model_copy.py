"""Copies of a module tree: the tensors are shared, everything else is as in a deep copy."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.runtimes.wrap.model_copy import copy_tree


@pytest.mark.parametrize("family", ["llama", "gpt2", "mamba", "t5", "bart"])
def test_a_copy_has_the_tensors_and_a_config_of_its_own(family: str) -> None:
    model = tiny_seq2seq(family) if family in ("t5", "bart") else tiny_model(family)
    twin = copy_tree(model.train())
    assert [id(each) for each in twin.parameters()] == [id(each) for each in model.parameters()]
    assert [id(each) for each in twin.buffers()] == [id(each) for each in model.buffers()]
    assert model.training and not any(module.training for module in twin.modules())
    for one, other in zip(model.modules(), twin.modules(), strict=True):
        assert one is not other and type(one) is type(other) and list(vars(one)) == list(vars(other))
        assert one._forward_hooks is not other._forward_hooks
    configs = [vars(module).get("config") for module in twin.modules()]
    originals = [vars(module).get("config") for module in model.modules()]
    assert all(one is not other for one, other in zip(originals, configs, strict=True) if one is not None)
    # Modules that share a config share its copy.
    assert len({id(each) for each in configs}) == len({id(each) for each in originals})
    assert twin.config.to_dict() == model.config.to_dict()
    twin.config.pad_token_id = 7
    assert model.config.pad_token_id != 7


class Part(nn.Module):
    """A module with attributes of several kinds."""

    def __init__(self, shared: list[Any]) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.shared, self.other = shared, {"shared": shared, "module": [self.linear]}
        self.plain = torch.ones(2)


class Frozen(nn.Linear):
    """A module that says itself how to copy it."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Frozen:
        return self


def test_shared_attributes_stay_shared_and_special_classes_copy_themselves() -> None:
    shared: list[Any] = []
    tree = nn.Sequential(Part(shared), Part(shared), Frozen(2, 2))
    twin = copy_tree(tree)
    expected = copy.deepcopy(tree)
    for found in (twin, expected):
        assert found[0].shared is found[1].shared is found[0].other["shared"] and found[0].shared is not shared
        assert found[0].other["module"][0] is found[0].linear is not tree[0].linear
        assert found[0].plain is not tree[0].plain and torch.equal(found[0].plain, tree[0].plain)
        assert found[2] is tree[2]

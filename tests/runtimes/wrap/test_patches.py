"""What a module tree carries besides its classes and tensors."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from tests.tiny_models import FAMILIES, OTHERS, tiny_model
from tests.tiny_seq2seq import FAMILIES as SOURCED
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.runtimes.weights.packed_linear import pack_linears
from unspool.runtimes.wrap.model_copy import fingerprint
from unspool.runtimes.wrap.patches import find_patch


@pytest.mark.parametrize("family", [*FAMILIES, *OTHERS])
def test_models_of_transformers_are_plain(family: str) -> None:
    assert find_patch(tiny_model(family)) == ""


@pytest.mark.parametrize("family", SOURCED)
def test_models_with_a_source_are_plain(family: str) -> None:
    assert find_patch(tiny_seq2seq(family)) == ""


def test_packed_layers_and_hooks_that_move_tensors_are_plain() -> None:
    model = tiny_model("llama")
    pack_linears(model, keep=False)
    assert find_patch(model) == ""
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    hooks.add_hook_to_module(model.model.layers[0], hooks.AlignDevicesHook(execution_device="cpu"))
    assert find_patch(model) == ""
    original = model.model.layers[0].forward
    model.model.layers[0].forward = lambda *args, **options: original(*args, **options)
    assert "replaced `forward`" in find_patch(model)


class Doubled(nn.Linear):
    """A class of the caller's."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(inputs)


def assign(name: str, value: Any) -> Any:
    return lambda model: setattr(model.model.layers[0].mlp, name, value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda model: model.lm_head.register_forward_hook(print), "hooks (Linear)"),
        (lambda model: model.model.register_forward_pre_hook(print), "hooks (LlamaModel)"),
        (lambda model: setattr(model, "lm_head", Doubled(32, 97)), "modules of tests (Doubled)"),
        (assign("forward", lambda states: states), "a replaced `forward` (LlamaMLP)"),
        (assign("forward", functools.partial(nn.functional.relu)), "a replaced `forward` (LlamaMLP)"),
        (assign("scale", lambda states: states), "a replaced `scale` (LlamaMLP)"),
        (lambda model: nn.utils.parametrizations.weight_norm(model.lm_head), "parametrizations"),
    ],
)
def test_what_python_adds_to_a_tree_is_named(change: Any, reason: str) -> None:
    model = tiny_model("llama")
    change(model)
    assert reason in find_patch(model)


def test_functions_that_a_class_or_its_file_is_given_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = tiny_model("llama"), transformers.models.llama.modeling_llama
    original = file.LlamaMLP.forward
    with monkeypatch.context() as patch:
        patch.setattr(file.LlamaMLP, "forward", functools.wraps(original)(lambda self, states: states))
        assert find_patch(model) == "a replaced `LlamaMLP.forward`"
    with monkeypatch.context() as patch:
        patch.setattr(file, "apply_rotary_pos_emb", lambda query, key, *args: (query, key))
        assert "modeling_llama.apply_rotary_pos_emb" in find_patch(model)
    with monkeypatch.context() as patch:
        mapping = transformers.AttentionInterface._global_mapping
        patch.setitem(mapping, "sdpa", lambda *args, **options: mapping["eager"](*args, **options))
        assert "attention function" in find_patch(model)
    assert find_patch(model) == ""


def test_the_fingerprint_changes_with_what_a_forward_reads_alone() -> None:
    model = tiny_model("llama")
    ids, before = torch.tensor([[5, 6, 7]]), fingerprint(model)
    model.generate(ids, max_new_tokens=3, pad_token_id=0)
    model(ids, output_hidden_states=True)
    model.train().eval()
    assert fingerprint(model) == before
    model.model.norm.variance_epsilon *= 2
    assert fingerprint(model).has_other_parts(before)

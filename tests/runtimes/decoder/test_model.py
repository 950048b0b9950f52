"""A user's own model: untouched, shared, and followed through training."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.nn.utils import parametrizations

from tests.tiny_models import FAMILIES, tiny_model
from unspool.errors import ModelError
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv.attention import ATTENTION_NAME
from unspool.runtimes.weights.packed_linear import PackedLinear
from unspool.runtimes.wrap.wrapped import refresh, shared
from unspool.types import Feed

TEXT = [5, 17, 3, 44, 8]


def next_row(runtime: DecoderRuntime, seq: int = 0) -> torch.Tensor:
    row = runtime.forward([Feed(seq=seq, tokens=TEXT, asked=(len(TEXT) - 1,))]).logits[0]
    runtime.release(seq)
    return row


def own_row(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(torch.tensor([TEXT])).logits[0, -1]


def same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_users_model_stays_as_it_is(family: str) -> None:
    model = tiny_model(family).train()
    state = {name: (id(tensor), tensor._version) for name, tensor in model.state_dict(keep_vars=True).items()}
    modules = {name: type(module) for name, module in model.named_modules()}
    config = model.config.to_dict()
    implementation = model.config._attn_implementation
    expected = own_row(model)
    runtime = DecoderRuntime(model, owns_model=False, pack=True)
    assert same(next_row(runtime), expected)
    assert {n: (id(t), t._version) for n, t in model.state_dict(keep_vars=True).items()} == state
    assert {name: type(module) for name, module in model.named_modules()} == modules
    assert model.training and all(module.training for module in model.modules())
    assert model.config.to_dict() == config and model.config._attn_implementation == implementation
    ids = torch.tensor([TEXT])
    tokens = model.eval().generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, do_sample=False, pad_token_id=0
    )
    assert tokens[0, len(TEXT)] == expected.argmax()


def test_a_training_step_is_seen_when_the_next_sequence_opens() -> None:
    model = tiny_model("gpt2")
    runtime = DecoderRuntime(model, owns_model=False, pack=True)
    before = next_row(runtime)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    model(torch.tensor([TEXT]), labels=torch.tensor([TEXT])).loss.backward()
    optimizer.step()
    after = next_row(runtime)
    assert same(after, own_row(model)) and not same(after, before)


def test_what_a_free_slot_holds_from_before_a_training_step_is_not_reused() -> None:
    model = tiny_model("gpt2")
    runtime = DecoderRuntime(model, owns_model=False)
    next_row(runtime)
    next_row(runtime, seq=9)
    with torch.no_grad():
        model.transformer.h[0].attn.c_attn.weight.mul_(0.5)
    runtime.forward([Feed(seq=1, tokens=TEXT, asked=())])
    runtime.fork(1, 2)
    row = runtime.forward([Feed(seq=2, tokens=[7], asked=(0,))]).logits[0]
    with torch.no_grad():
        expected = model(torch.tensor([[*TEXT, 7]])).logits[0, -1]
    assert same(row, expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.load_state_dict(tiny_model("llama", seed=1).state_dict()),
        lambda model: model.load_state_dict(tiny_model("llama", seed=1).state_dict(), assign=True),
        lambda model: setattr(model.lm_head, "weight", torch.nn.Parameter(model.lm_head.weight.detach() * 2)),
        lambda model: setattr(model.lm_head.weight, "data", model.lm_head.weight.data * 2),
        lambda model: model.double(),
    ],
    ids=["load_state_dict", "assign", "new parameter", "new data", "other dtype"],
)
def test_every_counted_change_of_weights_is_seen(change: Any) -> None:
    model = tiny_model("llama")
    runtime = DecoderRuntime(model, owns_model=False, pack=True)
    before = next_row(runtime)
    change(model)
    after = next_row(runtime)
    assert same(after, own_row(model).float())
    assert not torch.equal(after, before)


@pytest.mark.usefixtures("packed_layers")
def test_writes_through_data_are_seen_after_refresh() -> None:
    model = tiny_model("llama")
    runtime = DecoderRuntime(model, owns_model=False, pack=True)
    before = next_row(runtime)
    model.model.layers[0].mlp.down_proj.weight.data.mul_(3)
    assert torch.equal(next_row(runtime), before)
    refresh(model)
    after = next_row(runtime)
    assert not same(after, before)
    torch.testing.assert_close(after, own_row(model), atol=1e-3, rtol=1e-4)


def test_a_model_and_a_cache_made_in_inference_mode_serve_outside_of_it_too() -> None:
    with torch.inference_mode():
        model = tiny_model("llama")
        runtime = DecoderRuntime(model, owns_model=False, pack=True)
        runtime.forward([Feed(seq=0, tokens=TEXT, asked=())])
    runtime.fork(0, 1)
    runtime.release(0)
    assert same(next_row(runtime, seq=2), own_row(tiny_model("llama")))


def test_several_runtimes_share_one_shell_and_no_sequences() -> None:
    model = tiny_model("gpt2")
    first, second = DecoderRuntime(model, owns_model=False), DecoderRuntime(model, owns_model=False)
    assert first._decoder_model is second._decoder_model is shared(model, DecoderModel, pack="auto")
    first.forward([Feed(seq=0, tokens=TEXT, asked=())])
    assert same(next_row(second), own_row(model))
    assert first.truncate(0, 99) == len(TEXT)


@pytest.mark.usefixtures("packed_layers")
def test_a_layer_that_is_more_than_a_plain_linear_one_is_not_packed_and_keeps_its_effect() -> None:
    model = tiny_model("llama")
    attention, mlp = model.model.layers[0].self_attn, model.model.layers[0].mlp
    attention.q_proj.register_forward_hook(lambda module, inputs, output: output * 1.5)
    parametrizations.weight_norm(attention.k_proj)

    class Louder(torch.nn.Linear):
        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            return super().forward(inputs) * 2

    mlp.up_proj.__class__ = Louder
    runtime = DecoderRuntime(model, owns_model=False, pack=True)
    assert same(next_row(runtime), own_row(model))
    inner = runtime._decoder_model.module.model.layers[0]
    assert not any(
        isinstance(m, PackedLinear) for m in (inner.self_attn.q_proj, inner.self_attn.k_proj, inner.mlp.up_proj)
    )
    assert "hooks" in runtime.info.backend


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason() -> None:
    model = tiny_model("gpt2")
    model.cached_loss = model(torch.tensor([TEXT])).logits.sum()
    with pytest.raises(ModelError, match="cannot be copied"):
        DecoderRuntime(model, owns_model=False)


def test_the_shell_cannot_be_run_from_outside() -> None:
    model = tiny_model("llama")
    decoder_model = shared(model, DecoderModel, pack="auto")
    with pytest.raises(ModelError, match="belongs to unspool"):
        decoder_model.module(torch.tensor([TEXT]))
    assert own_row(model).isfinite().all()


def test_a_model_with_accelerate_hooks_runs_as_it_is_and_is_left_as_it_was() -> None:
    hooks = pytest.importorskip("accelerate.hooks", reason="accelerate is not installed")
    model = tiny_model("llama")
    expected = own_row(model)
    hooks.add_hook_to_module(model.model.layers[0], hooks.AlignDevicesHook(execution_device="cpu"))
    runtime = DecoderRuntime(model, owns_model=False)
    assert runtime._decoder_model.module is model
    assert same(next_row(runtime), expected)
    assert "caller's own module" in runtime.info.backend
    assert model.config._attn_implementation != ATTENTION_NAME
    assert same(next_row(DecoderRuntime(model.train(), owns_model=False)), expected)
    assert all(module.training for module in model.modules())


def test_a_model_spread_over_devices_is_read_through_hooks_that_do_not_stay() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        theirs = model(torch.tensor([TEXT]), output_hidden_states=True).hidden_states
        expected = model.lm_head(theirs[1][0, -1:])
    hooks = {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()}
    model.model.layers[0]._hf_hook = object()  # what accelerate marks a module with
    runtime = DecoderRuntime(model, owns_model=False)
    assert runtime._decoder_model.module is model
    rows = runtime.forward([Feed(seq=0, tokens=TEXT, asked=(len(TEXT) - 1,), hidden=True, layers=(1,))])
    assert rows.hidden is not None and same(rows.hidden, theirs[-1][0])
    assert rows.inner is not None and same(rows.inner, expected)
    assert {name: (len(m._forward_hooks), len(m._forward_pre_hooks)) for name, m in model.named_modules()} == hooks

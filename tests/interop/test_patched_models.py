"""Hooks, replaced methods and other patches of a model: what acts in `model.generate` at a call acts in ours."""

from __future__ import annotations

import gc
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.engines import driver_of

PROMPT = torch.tensor([[5, 6, 7]])
OPTIONS: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
PATHS = ["llama", "gpt2", "bloom", "mamba", "openai", "t5", "bart"]
"""Slot cache, own cache, recurrent state, recomputation, and encoder-decoders."""


def model_of(family: str) -> Any:
    return tiny_seq2seq(family) if family in ("t5", "bart") else tiny_model(family)


def assert_as_generate(model: Any, prompt: torch.Tensor = PROMPT, **options: Any) -> torch.Tensor:
    found = unspool.generate(model, prompt, **{**OPTIONS, **options})
    expected: torch.Tensor = model.generate(input_ids=prompt, **{**OPTIONS, **options})
    assert found.equal(expected)
    return expected


def changed(output: Any, change: Callable[[torch.Tensor], torch.Tensor]) -> Any:
    """Return a layer's output with other states; some return them in a tuple or a list."""
    if isinstance(output, torch.Tensor):
        return change(output)
    return type(output)([change(output[0]), *output[1:]])


class Negates(nn.Module):
    """A parametrization, and a callable object."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return -weight


class Turns:
    """A callable object that is a hook. It cannot be copied."""

    def __init__(self) -> None:
        self.num_calls = 0

    def __call__(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        self.num_calls += 1
        return -output

    def method(self, module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return self(module, args, output)

    def __deepcopy__(self, memo: Any) -> Any:
        raise AssertionError("a hook of the caller's was copied")


@contextmanager
def hooked(module: nn.Module, hook: Any, **options: Any) -> Iterator[None]:
    handle = module.register_forward_hook(hook, **options)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def pre_hooked(head: nn.Module) -> Iterator[None]:
    def turn(module: Any, args: Any, kwargs: Any) -> Any:
        return (-args[0], *args[1:]), kwargs

    handle = head.register_forward_pre_hook(turn, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def replaced(head: nn.Module) -> Iterator[None]:
    original = head.forward
    head.forward = lambda states: -original(states)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward


@contextmanager
def rebound(head: nn.Module) -> Iterator[None]:
    original = head.forward
    head.forward = types.MethodType(lambda self, states: -original(states), head)  # type: ignore[method-assign]
    try:
        yield
    finally:
        del head.forward


@contextmanager
def parametrized(head: nn.Module) -> Iterator[None]:
    parametrize.register_parametrization(head, "weight", Negates(), unsafe=True)
    try:
        yield
    finally:
        parametrize.remove_parametrizations(head, "weight", leave_parametrized=False)


@contextmanager
def everywhere(head: nn.Module) -> Iterator[None]:
    def turn(module: Any, args: Any, output: Any) -> Any:
        return -output if module is head else None

    handle = nn.modules.module.register_module_forward_hook(turn)
    try:
        yield
    finally:
        handle.remove()


PATCHES: dict[str, Callable[[nn.Module], Any]] = {
    "function": lambda head: hooked(head, lambda module, args, output: -output),
    "with kwargs": lambda head: hooked(head, lambda module, args, kwargs, output: -output, with_kwargs=True),
    "bound method": lambda head: hooked(head, Turns().method),
    "callable object": lambda head: hooked(head, Turns()),
    "pre-hook": pre_hooked,
    "forward": replaced,
    "bound forward": rebound,
    "parametrization": parametrized,
    "hook on all modules": everywhere,
}


@pytest.mark.parametrize("patch", PATCHES)
@pytest.mark.parametrize("family", PATHS)
def test_a_patch_acts_from_the_call_after_it_comes_to_the_call_after_it_goes(family: str, patch: str) -> None:
    model = model_of(family)
    plain = assert_as_generate(model)
    with PATCHES[patch](model.get_output_embeddings()):
        assert not assert_as_generate(model).equal(plain)
    assert assert_as_generate(model).equal(plain)


@pytest.mark.parametrize("family", ["llama", "bloom", "t5"])
def test_a_strength_that_a_hook_reads_from_python_can_change_after_any_number_of_passes(family: str) -> None:
    model, strength = model_of(family), [1.0]
    with hooked(model.get_output_embeddings(), lambda module, args, output: output * strength[0]):
        first = assert_as_generate(model, max_new_tokens=40)
        strength[0] = -1.0
        assert not assert_as_generate(model, max_new_tokens=40).equal(first)


def test_keys_of_one_call_do_not_serve_another_one_under_a_hook() -> None:
    model, strength, prompt = tiny_model("llama"), [0.0], torch.arange(5, 60)[None]

    def steer(module: Any, args: Any, output: Any) -> Any:
        return changed(output, lambda states: states + strength[0])

    with hooked(model.model.layers[0], steer):
        for value in (0.0, 3.0, -3.0):
            strength[0] = value
            assert_as_generate(model, prompt)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("family", ["llama", "gemma2", "mamba", "openai", "bart"])
def test_a_batch_and_its_beams_run_under_a_hook_on_a_layer(family: str, options: dict[str, Any]) -> None:
    model = model_of(family)
    layer = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1)[0]

    def steer(module: Any, args: Any, output: Any) -> Any:
        return changed(output, lambda states: states * 0.5)

    with hooked(layer, steer):
        assert_as_generate(model, torch.tensor([[5, 6, 7], [9, 8, 40]]), **options)


@pytest.mark.parametrize("length", [3, 300])
@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom", "mamba", "openai"])
def test_a_hook_sees_the_passes_of_generate_and_no_other(family: str, length: int) -> None:
    """A hook can act on the last position alone, count its calls, or collect what it sees."""
    model = tiny_model(family, **{} if family in ("bloom", "mamba") else {_LIMIT[family]: 512})
    prompt, shapes = torch.arange(length)[None] % 90 + 3, []
    layer = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) > 1)[1]

    def turn_last(module: Any, args: Any, output: Any) -> Any:
        def turned(states: torch.Tensor) -> torch.Tensor:
            shapes.append(states.shape)
            return torch.cat([states[:, :-1], -states[:, -1:]], 1)

        return changed(output, turned)

    with hooked(layer, turn_last), hooked(model.get_output_embeddings(), lambda _, args, out: shapes.append(out.shape)):
        found = unspool.generate(model, prompt, **OPTIONS)
        ours = [*shapes]
        shapes.clear()
        assert found.equal(model.generate(prompt, **OPTIONS))
    assert ours == shapes


_LIMIT = {"llama": "max_position_embeddings", "gemma2": "max_position_embeddings", "openai": "n_positions"}


def test_an_attention_function_of_the_callers_acts() -> None:
    def halved(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
        return sdpa(module, query, key, value * 0.5, mask, **options)

    sdpa: Any = ALL_ATTENTION_FUNCTIONS["sdpa"]
    model = tiny_model("llama")
    plain = assert_as_generate(model)
    transformers.AttentionInterface.register("halved", halved)
    transformers.AttentionMaskInterface.register("halved", transformers.masking_utils.sdpa_mask)
    model.set_attn_implementation("halved")
    assert not assert_as_generate(model).equal(plain)
    model.set_attn_implementation("eager")
    assert_as_generate(model)


def test_a_method_that_a_class_is_given_acts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    plain, original = assert_as_generate(model), type(model.model.layers[0].mlp).forward
    monkeypatch.setattr(type(model.model.layers[0].mlp), "forward", lambda self, states: -original(self, states))
    patched = assert_as_generate(model)
    assert not patched.equal(plain)
    monkeypatch.undo()
    assert assert_as_generate(model).equal(plain)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model.model.layers[0], "mlp", tiny_model("llama", seed=3).model.layers[0].mlp),
        lambda model: setattr(model.model, "layers", nn.ModuleList([model.model.layers[1], model.model.layers[0]])),
        lambda model: setattr(model.model, "layers", model.model.layers[:1]) or setattr_config(model),
        lambda model: setattr(model.model.layers[0].mlp, "act_fn", nn.ReLU()),
        lambda model: setattr(model.model.layers[0].self_attn, "scaling", 2.0),
        lambda model: setattr(model.model.norm, "variance_epsilon", 10.0),
        lambda model: parametrizations.weight_norm(model.lm_head),
    ],
    ids=["module", "order", "fewer layers", "activation", "scaling", "epsilon", "weight norm"],
)
def test_a_change_of_modules_and_attributes_acts(change: Any) -> None:
    model = tiny_model("llama")
    assert_as_generate(model)
    change(model)
    assert_as_generate(model)


def setattr_config(model: Any) -> None:
    model.config.num_hidden_layers = len(model.model.layers)


def test_a_patched_model_is_not_kept_alive() -> None:
    model = tiny_model("llama")
    model.lm_head.register_forward_hook(lambda module, args, output: -output)
    assert_as_generate(model)
    kept = weakref.ref(model)
    del model
    gc.collect()
    assert kept() is None


def test_looking_at_hidden_states_with_transformers_leaves_the_model_plain() -> None:
    model = tiny_model("llama")
    driver = driver_of(model)
    model(PROMPT, output_hidden_states=True, output_attentions=True)
    model.generate(PROMPT, **OPTIONS)
    assert driver_of(model) is driver


def test_training_leaves_the_engine_as_it_is() -> None:
    model = tiny_model("llama")
    driver = driver_of(model)
    model.train()
    model.activation_checkpointing_enable()
    model.config.use_cache = False
    model(input_ids=PROMPT, labels=PROMPT).loss.backward()
    model.eval()
    assert driver_of(model) is driver


class TestDoors:
    """Each way in sees the same model."""

    def test_a_loaded_model_of_the_users(self) -> None:
        model = tiny_model("llama")
        lm = unspool.load(model)

        def assert_same() -> tuple[int, ...]:
            found = lm.generate([5, 6, 7], max_new_tokens=8, eos_token_id=None).completions[0].token_ids
            assert found == tuple(model.generate(PROMPT, **OPTIONS)[0, 3:].tolist())
            return found

        plain = assert_same()
        with hooked(model.lm_head, lambda module, args, output: -output):
            assert assert_same() != plain and "hooks (Linear)" in lm.info.backend
        assert assert_same() == plain and "slot cache" in lm.info.backend

    @pytest.mark.parametrize("where", ["lm_head", "model.layers.1.mlp.act_fn", "model.layers.1.mlp", "model.layers.0"])
    def test_a_model_that_was_loaded_by_name(self, where: str) -> None:
        lm = unspool.load("tale-draft")
        model = transformers.AutoModelForCausalLM.from_pretrained(
            unspool.loading.load.EMBEDDED / "draft", dtype="float32"
        )

        def turn(module: Any, args: Any, output: Any) -> Any:
            return changed(output, torch.neg)

        def assert_same() -> tuple[int, ...]:
            found = lm.generate([5, 6, 7], max_new_tokens=12, eos_token_id=None).completions[0].token_ids
            assert found == tuple(model.generate(PROMPT, **{**OPTIONS, "max_new_tokens": 12})[0, 3:].tolist())
            return found

        plain = assert_same()
        with hooked(lm.model.get_submodule(where), turn), hooked(model.get_submodule(where), turn):
            assert assert_same() != plain
        assert assert_same() == plain
        lm.model.set_attn_implementation("eager")
        assert assert_same() == plain and "slot cache" in lm.info.backend

    def test_a_pipeline(self) -> None:
        model, tokenizer = tiny_model("llama", vocab_size=400), byte_level()
        pipe = unspool.pipeline("text-generation", model, tokenizer=tokenizer)
        call: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "return_full_text": False}
        theirs = transformers.pipeline("text-generation", model, tokenizer=tokenizer)
        plain = pipe("ab", **call)
        with hooked(model.lm_head, lambda module, args, output: -output):
            assert pipe("ab", **call) == theirs("ab", **call) != plain
        assert pipe("ab", **call) == theirs("ab", **call) == plain

    def test_custom_generate(self) -> None:
        model = tiny_model("llama")
        with hooked(model.lm_head, lambda module, args, output: -output):
            found = model.generate(PROMPT, custom_generate=unspool.decoding_method, **OPTIONS)
            assert found.equal(model.generate(PROMPT, **OPTIONS))

    def test_an_assistant(self) -> None:
        model, turns = tiny_model("llama"), Turns()
        assistant = tiny_model("llama", seed=1)
        assistant.lm_head.register_forward_hook(turns)
        assert_as_generate(model, assistant_model=assistant)
        assert turns.num_calls > 0

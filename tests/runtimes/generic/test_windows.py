"""Sliding windows and chunks, whoever applies them: a layer, its mask, or the cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.tiny_models import MAX_LENGTH, VOCAB_SIZE, WINDOW, tiny_model
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.generic.runtime import GenericRuntime
from unspool.types import Feed

_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_MORE: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("Qwen2Config", {"use_sliding_window": True, "max_window_layers": 0}),
    "qwen3": ("Qwen3Config", {"use_sliding_window": True, "max_window_layers": 1, "head_dim": 16}),
    "cohere2": ("Cohere2Config", {"layer_types": ["sliding_attention", "full_attention"]}),
    "mixtral": ("MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "olmo3": ("Olmo3Config", {"layer_types": ["sliding_attention", "full_attention"]}),
    "ministral": ("MinistralConfig", {"head_dim": 8}),
}
"""Families with a window beside those of tiny_models."""
FAMILIES = ["mistral", "gemma2", "gemma3", "phi3", "starcoder2", "gpt_oss", "phimoe", "gpt_neo", "llama4", *_MORE]


def model_of(family: str, window: int) -> Any:
    name = {"gpt_neo": "window_size", "llama4": "attention_chunk_size"}.get(family, "sliding_window")
    if family not in _MORE:
        return tiny_model(family, **{name: window})
    kind, changes = _MORE[family]
    config = getattr(transformers, kind)(**{**_SIZES, **changes, name: window})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model: Any = transformers.AutoModelForCausalLM.from_config(config).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.25)
    return model


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_beyond_a_window_are_those_of_transformers(family: str) -> None:
    model = model_of(family, WINDOW)
    prompts = (torch.arange(40).reshape(2, 20) * 7) % 90 + 3
    options: dict[str, Any] = {"max_new_tokens": 10, "eos_token_id": None, "pad_token_id": 0}
    for more in ({}, {"num_beams": 3}):
        assert unspool.generate(model, prompts, **options, **more).equal(model.generate(prompts, **options, **more))


@pytest.mark.parametrize("window", [WINDOW, 3, 64, 4096])
def test_a_window_of_any_width_that_the_mask_alone_applies_is_not_for_slots(window: int) -> None:
    runtime = runtime_of(model_of("phimoe", window), owns_model=False)
    assert isinstance(runtime, GenericRuntime) and "own cache" in runtime.info.backend
    assert isinstance(runtime_of(tiny_model("phimoe", sliding_window=None), owns_model=False), DecoderRuntime)
    for family in ("mistral", "gemma2"):
        model = model_of(family, window)
        assert isinstance(runtime_of(model, owns_model=True), DecoderRuntime)
        assert model.config.sliding_window == window, "the trial gives back what it narrows"
    assert model.model.layers[0].self_attn.sliding_window == window


def test_a_prompt_in_pieces_is_read_right_beyond_a_window_of_the_mask() -> None:
    model, tokens = model_of("phimoe", WINDOW), [(7 * place) % 90 + 3 for place in range(30)]
    runtime, found = runtime_of(model, owns_model=False), []
    for start in range(0, 30, 6):
        found.append(runtime.forward([Feed(seq=0, tokens=tokens[start : start + 6], asked=tuple(range(6)))]).logits)
    with torch.no_grad():
        torch.testing.assert_close(torch.cat(found), model(torch.tensor([tokens])).logits[0], atol=1e-4, rtol=0)

"""The cache in a result of the fast path: transformers' cache, computed when it is first used."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_leaves
from transformers import Cache, DynamicCache, EncoderDecoderCache, MiniMaxConfig, MiniMaxForCausalLM

import unspool
from tests.interop.test_own_forward import DOORS, IDS, MASK, Door, assert_equal, drop_in, parts, theirs
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.tiny_multimodal import prompts_of, tiny_multimodal
from tests.tiny_seq2seq import tiny_seq2seq

GIVEN: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 5, "return_dict_in_generate": True}


@DOORS
@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 1, "num_return_sequences": 2}], ids=["", "two"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral", "t5", "bart"])
def test_it_equals_that_of_transformers(door: Door, family: str, options: dict[str, Any]):
    model = tiny_seq2seq(family) if family in ("t5", "bart") else tiny_model(family, seed=5)
    given = {**GIVEN, **options}
    if family == "bart":
        given["attention_mask"] = torch.ones_like(MASK)  # its positions count the pads of a source
    expected = theirs(model, IDS, **given).past_key_values
    cache = door(model, IDS, **given).past_key_values
    assert isinstance(cache, EncoderDecoderCache if family in ("t5", "bart") else DynamicCache)
    assert_equal(tuple(parts(cache)), tuple(parts(expected)))
    assert type(cache) is type(expected)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "top_k": 1}], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", ["qwen2", "mistral", "qwen2_audio"])
def test_drafts_of_transformers_change_its_columns_under_pads_alone(family: str, options: dict[str, Any]):
    """A pad sees no token, so eager attention gives it the mean of its whole pass: in the first, of drafts too."""
    if family == "qwen2_audio":
        model = tiny_multimodal(family)
        inputs = {name: value[1:] for name, value in prompts_of(family).items()}
    else:
        model = tiny_model(family, **({"sliding_window": None} if family == "mistral" else {}))
        inputs = {"input_ids": IDS[:1], "attention_mask": MASK[:1]}
    model.set_attn_implementation("eager")
    draft, pads = copy.deepcopy(model), int((inputs["attention_mask"] == 0).sum())
    draft.generation_config.num_assistant_tokens = 2
    given = {**inputs, **options, "max_new_tokens": 6, "eos_token_id": None, "return_dict_in_generate": True}
    found, drafted = (each(model, **given, assistant_model=draft) for each in (drop_in, theirs))
    plain = theirs(model, **given)
    assert pads and found.sequences.equal(plain.sequences) and drafted.sequences.equal(plain.sequences)
    cache, other = parts(found.past_key_values), parts(drafted.past_key_values)
    assert_equal(tuple(cache), tuple(parts(plain.past_key_values)))
    assert_equal(tuple(each[:, :, pads:] for each in cache), tuple(each[:, :, pads:] for each in other))
    assert not torch.allclose(cache[2][:, :, :pads], other[2][:, :, :pads], atol=0.01)  # keys of the second layer


@DOORS
@pytest.mark.parametrize("family", ["rwkv", "minimax"])
def test_a_cache_of_the_models_own_class_equals_that_of_transformers(door: Door, family: str):
    if family == "minimax":
        torch.manual_seed(0)
        layers = {"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"], "block_size": 4}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4}
        sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48}
        model: Any = MiniMaxForCausalLM(MiniMaxConfig(**layers, **heads, **sizes)).eval()
    else:
        model = tiny_model(family)
    given = {"max_new_tokens": 5, "return_dict_in_generate": True}
    expected = theirs(model, IDS[:1, 2:], **given)
    found = door(model, IDS[:1, 2:], **given)
    assert found.sequences.equal(expected.sequences)
    assert type(found.past_key_values) is type(expected.past_key_values)
    assert_equal(tuple(states(found.past_key_values)), tuple(states(expected.past_key_values)))


def states(cache: Any) -> list[torch.Tensor]:
    """Return the tensors of a cache of any class."""
    if not isinstance(cache, Cache):
        return [each for each in tree_leaves(cache) if each is not None]
    linear = [each for each in getattr(cache, "linear_cache", []) if isinstance(each, torch.Tensor)]
    return [*(each for layer in cache.layers for each in (layer.keys, layer.values)), *linear]


def test_beams_have_the_rows_of_their_last_step():
    model = tiny_model("llama")
    cache = unspool.generate(model, IDS, num_beams=3, **GIVEN).past_key_values
    assert cache.layers[0].keys.shape == theirs(model, IDS, num_beams=3, **GIVEN).past_key_values.layers[0].keys.shape


def test_it_costs_nothing_until_it_is_used():
    model, passes = tiny_model("llama"), list[int]()
    cache = unspool.generate(model, IDS, **GIVEN).past_key_values
    hook = model.register_forward_pre_hook(lambda *_: passes.append(1))
    assert isinstance(cache, DynamicCache) and not passes
    assert cache.get_seq_length() == IDS.shape[1] + 4
    assert len(cache) == 2 and len(passes) == 2
    hook.remove()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_is_computed_too(copied: Any):
    cache = unspool.generate(tiny_model("llama"), IDS, **GIVEN).past_key_values
    twin = copied(cache)
    assert type(twin) is DynamicCache
    assert_equal(tuple(parts(twin)), tuple(parts(cache)))


def test_it_can_be_saved():
    cache = unspool.generate(tiny_model("llama"), IDS, **GIVEN).past_key_values
    file = io.BytesIO()
    torch.save(cache, file)
    file.seek(0)
    assert_equal(tuple(parts(torch.load(file, weights_only=False))), tuple(parts(cache)))


def test_a_model_with_a_memory_in_place_of_a_cache_returns_none():
    found = unspool.generate(tiny_model("xlnet"), IDS[1:2], max_new_tokens=2, return_dict_in_generate=True)
    assert found.past_key_values is None


def test_use_cache_false_returns_none():
    assert unspool.generate(tiny_model("llama"), IDS, use_cache=False, **GIVEN).past_key_values is None


@DOORS
@pytest.mark.parametrize("ids", [IDS, None], ids=["with ids", "alone"])
def test_embeddings_return_it_also_with_use_cache_false(door: Door, ids: torch.Tensor | None):
    # transformers needs the cache there to tell the first step from the others.
    model = tiny_model("llama")
    call = {**GIVEN, "inputs_embeds": model.get_input_embeddings()(IDS), "use_cache": False}
    expected = theirs(model, ids, **call)
    found = door(model, ids, **call)
    assert found.sequences.equal(expected.sequences)
    assert_equal(tuple(parts(found.past_key_values)), tuple(parts(expected.past_key_values)))

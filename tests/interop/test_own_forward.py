"""Attentions, hidden states, caches and arguments of a model's forward: transformers' values, through both doors."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, StaticCache

import unspool
from tests.tiny_models import CACHE, tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.errors import OptionError

IDS = torch.tensor([[0, 0, 11, 12, 13], [21, 22, 23, 24, 25], [0, 31, 32, 33, 34]])
MASK = (IDS != 0).long()
WHOLE = torch.tensor([[11, 12, 13, 14], [21, 22, 23, 24]])
STATES = {"output_attentions": True, "output_hidden_states": True, "output_scores": True}
FIELDS = (
    *("attentions", "hidden_states", "encoder_attentions", "encoder_hidden_states"),
    *("decoder_attentions", "cross_attentions", "decoder_hidden_states", "beam_indices"),
)

Door: TypeAlias = Callable[..., Any]


@functools.cache
def model_of(family: str) -> Any:
    """Return a tiny model that computes attention weights."""
    model = tiny_seq2seq(family) if family in ("t5", "bart") else tiny_model(family, seed=5)
    model.set_attn_implementation("eager")
    return model


def drop_in(model: Any, *args: Any, **options: Any) -> Any:
    return unspool.generate(model, *args, **options)


def inside(model: Any, *args: Any, **options: Any) -> Any:
    return theirs(model, *args, custom_generate=unspool.decoding_method, **options)


def theirs(model: Any, *args: Any, **options: Any) -> Any:
    """Return what transformers returns, without its warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.generate(*args, **options)


DOORS = pytest.mark.parametrize("door", [drop_in, inside])


def assert_equal(found: Any, expected: Any, name: str = "") -> None:
    """Compare nested tuples of tensors in length, shape and value."""
    if isinstance(expected, tuple):
        assert len(found) == len(expected), name
        for index, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{name}[{index}]")
    elif expected is None:
        assert found is None, name
    else:
        assert found.shape == expected.shape, name
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5, check_dtype=False, msg=name)


def parts(cache: Any) -> list[torch.Tensor]:
    """Return the keys and values of a cache, layer by layer."""
    caches = [cache.self_attention_cache, cache.cross_attention_cache] if hasattr(cache, "is_updated") else [cache]
    return [tensor for each in caches for layer in each.layers for tensor in (layer.keys, layer.values)]


def assert_same_result(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) and found.sequences.equal(expected.sequences)
    for name in FIELDS:
        if expected.get(name) is not None:
            assert_equal(found[name], expected[name], name)


@DOORS
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "t5", "bart"])
@pytest.mark.parametrize(
    "options",
    [
        {"eos_token_id": [2, *range(40, 60)]},
        {"do_sample": True, "top_k": 1, "num_return_sequences": 2},
        {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
        {"num_beams": 2, "use_cache": False},
    ],
    ids=["greedy", "sampled", "beams", "without a cache"],
)
def test_attentions_and_hidden_states_are_those_of_transformers(door: Door, family: str, options: dict[str, Any]):
    given = {"attention_mask": MASK, "max_new_tokens": 6, "return_dict_in_generate": True, **STATES, **options}
    expected = theirs(model_of(family), IDS, **given)
    found = door(model_of(family), IDS, **given)
    assert_same_result(found, expected)
    assert (found.get("past_key_values") is None) == (expected.get("past_key_values") is None)
    if "num_beams" not in options:
        assert_equal(tuple(parts(found.past_key_values)), tuple(parts(expected.past_key_values)))


@DOORS
def test_recurrent_states_have_hidden_states_too(door: Door):
    model = tiny_model("mamba")
    given = {"max_new_tokens": 4, "return_dict_in_generate": True, "output_hidden_states": True}
    assert_same_result(door(model, WHOLE, **given), theirs(model, WHOLE, **given))


@DOORS
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize(
    ("family", "arguments"),
    [
        ("gpt2", {"token_type_ids": torch.full_like(IDS, 7)}),
        ("gpt2", {"position_ids": torch.arange(3, 8).expand(3, -1), "attention_mask": torch.ones_like(IDS)}),
        ("mixtral", {"output_router_logits": True, "attention_mask": torch.ones_like(IDS)}),
    ],
    ids=["token_type_ids", "position_ids", "output_router_logits"],
)
def test_arguments_of_the_forward_are_handed_on(
    door: Door, family: str, arguments: dict[str, Any], options: dict[str, Any]
):
    model = model_of(family)
    given = {"attention_mask": MASK, "max_new_tokens": 5, **arguments, **options}
    found = door(model, IDS, **given)
    assert found.equal(theirs(model, IDS, **given))
    if "output_router_logits" not in arguments:
        assert not found.equal(unspool.generate(model, IDS, attention_mask=MASK, max_new_tokens=5, **options))


@DOORS
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("with_ids", [False, True], ids=["embeddings alone", "with ids"])
@pytest.mark.parametrize(
    "arguments",
    [
        {"token_type_ids": torch.full_like(IDS, 7)},
        {"position_ids": torch.arange(3, 8).expand(3, -1), "attention_mask": torch.ones_like(IDS)},
    ],
    ids=["token_type_ids", "position_ids"],
)
def test_token_types_and_positions_of_embeddings_continue_in_the_output(
    door: Door, arguments: dict[str, Any], with_ids: bool, options: dict[str, Any]
):
    model = model_of("gpt2")
    given = {"inputs_embeds": model.get_input_embeddings()(IDS).detach(), "attention_mask": MASK, "max_new_tokens": 5}
    given |= {**arguments, **options, **({"input_ids": IDS} if with_ids else {})}
    assert door(model, **given).equal(theirs(model, **given))


@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 2, "output_hidden_states": True}], ids=["engine", "forward"])
def test_encoder_outputs_of_the_caller_are_read_and_stay_as_they_are(family: str, options: dict[str, Any]):
    model = model_of(family)
    given = {"attention_mask": MASK, "max_new_tokens": 5, "return_dict_in_generate": True, **options}

    def encoded() -> Any:
        return model.get_encoder()(IDS + 1, attention_mask=MASK)

    own = encoded()
    found = unspool.generate(model, encoder_outputs=own, **given)
    assert_same_result(found, theirs(model, encoder_outputs=encoded(), **given))
    assert own.last_hidden_state.equal(encoded().last_hidden_state)


# --- caches ---------------------------------------------------------------------------------------------------------


@DOORS
@pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
def test_a_chat_continues_on_the_callers_cache(door: Door, family: str):
    """Each turn has all ids, and the cache of the turns before, as in transformers' chat loop."""
    model, told, ids = model_of(family), {}, {}
    for each in (theirs, door):
        cache, ids[each] = DynamicCache(config=model.config), WHOLE
        for turn in range(3):
            ids[each] = each(model, ids[each], **{CACHE: cache}, max_new_tokens=3)
            ids[each] = torch.cat([ids[each], torch.tensor([[50 + turn, 7]] * 2)], dim=1)
        told[each] = tuple(parts(cache))
    assert ids[door].equal(ids[theirs])
    assert_equal(told[door], told[theirs])


@pytest.mark.model
@DOORS
def test_a_chat_program_keeps_its_cache_between_turns(door: Door):
    """The program of transformers' page on cache strategies. A turn encodes all messages again, answers included."""
    folder = Path(unspool.__file__).parent / "tale"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"

    def talk(generate: Door) -> tuple[list[dict[str, str]], DynamicCache]:
        past_key_values, messages = DynamicCache(config=model.config), list[dict[str, str]]()
        for prompt in ("Who was the king?", "And the queen?", "Where did they live?"):
            messages.append({"role": "user", "content": prompt})
            inputs = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )
            width, cached = inputs["input_ids"].shape[1], past_key_values.get_seq_length()
            given = {"attention_mask": inputs["attention_mask"], CACHE: past_key_values}
            outputs = generate(model, inputs["input_ids"], do_sample=False, max_new_tokens=20, **given)
            assert cached < width and past_key_values.get_seq_length() == outputs.shape[1] - 1
            completion = tokenizer.decode(outputs[0, width:], skip_special_tokens=True)
            messages.append({"role": "assistant", "content": completion})
        return messages, past_key_values

    (found, cache), (expected, other) = talk(door), talk(theirs)
    assert found == expected and all(message["content"] for message in found)
    assert_equal(tuple(parts(cache)), tuple(parts(other)))


@DOORS
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_a_returned_cache_is_continued_here_and_by_transformers(door: Door, family: str):
    model = model_of(family)
    first = door(model, IDS, attention_mask=MASK, max_new_tokens=3, return_dict_in_generate=True, eos_token_id=None)
    mask = torch.nn.functional.pad(MASK, (0, 3), value=1)
    expected = theirs(model, IDS, attention_mask=MASK, max_new_tokens=6, eos_token_id=None)
    for each in (door, theirs):
        cache = copy.deepcopy(first.past_key_values)
        given = {"attention_mask": mask, CACHE: cache, "max_new_tokens": 3, "eos_token_id": None}
        assert each(model, first.sequences, **given).equal(expected)
        assert cache.get_seq_length() == expected.shape[1] - 1
    positions = mask.cumsum(dim=1)[:, -1:] - 1
    newest = {"input_ids": first.sequences[:, -1:], "position_ids": positions} if family != "bloom" else None
    if newest is not None:
        logits = model(**newest, attention_mask=mask, **{CACHE: first.past_key_values}).logits[:, -1]
        assert logits.argmax(dim=-1).equal(expected[:, -3])


@DOORS
@pytest.mark.parametrize("family", ["llama", "t5"])
def test_a_static_cache_is_returned_if_it_is_asked_for(door: Door, family: str):
    model = model_of(family)
    given = {"max_new_tokens": 4, "return_dict_in_generate": True, "cache_implementation": "static"}
    found, expected = door(model, WHOLE, **given), theirs(model, WHOLE, **given)
    assert_same_result(found, expected)
    cache = getattr(found.past_key_values, "self_attention_cache", found.past_key_values)
    assert isinstance(cache, StaticCache)
    assert_equal(tuple(parts(found.past_key_values)), tuple(parts(expected.past_key_values)))


@pytest.mark.parametrize("name", dict.fromkeys(["past_key_values", CACHE]))
def test_a_cache_has_its_earlier_name_too(name: str):
    model = model_of("llama")
    cache = model(WHOLE[:, :2], use_cache=True)[CACHE]
    expected = theirs(model, WHOLE, max_new_tokens=3)
    assert unspool.generate(model, WHOLE, **{name: cache}, max_new_tokens=3).equal(expected)
    assert cache.get_seq_length() == expected.shape[1] - 1


@pytest.mark.parametrize("name", ["cache_params"] if CACHE == "past_key_values" else ["cache_params", CACHE])
def test_a_state_of_mamba_is_continued_under_each_of_its_names(name: str):
    model = tiny_model("mamba")
    states = [model(WHOLE[:, :2], use_cache=True).cache_params for _ in range(2)]
    expected = theirs(model, WHOLE, cache_params=states[0], max_new_tokens=3)
    assert unspool.generate(model, WHOLE, **{name: states[1]}, max_new_tokens=3).equal(expected)


def test_a_cache_as_long_as_the_prompt_is_refused():
    model = model_of("llama")
    cache = model(WHOLE, use_cache=True).past_key_values
    with pytest.raises(OptionError, match=f"`{CACHE}` must hold fewer tokens than the 4 of the prompt"):
        unspool.generate(model, WHOLE, past_key_values=cache)


# --- what such a call cannot have -----------------------------------------------------------------------------------


def test_drafts_are_left_out_with_a_warning():
    model, given = model_of("llama"), {"max_new_tokens": 5, "return_dict_in_generate": True, **STATES}
    with pytest.warns(UserWarning, match="prompt_lookup_num_tokens"):
        found = unspool.generate(model, WHOLE[:1], prompt_lookup_num_tokens=2, **given)
    assert_same_result(found, theirs(model, WHOLE[:1], **given))
    with pytest.raises(OptionError, match="prompt_lookup_num_tokens"):
        unspool.generate(model, WHOLE[:1], prompt_lookup_num_tokens=2, strict=True, **given)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"guidance_scale": 2.0}, "guidance_scale"),
        ({"penalty_alpha": 0.6, "top_k": 4}, "strategy"),
        ({"dola_layers": "low"}, "dola_layers"),
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "output_attentions"),
        ({"token_type_ids": WHOLE}, "token_type_ids"),
        ({"encoder_outputs": (WHOLE,)}, "encoder_outputs"),
        ({"labels_of_mine": WHOLE}, "labels_of_mine"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_option_that_cannot_be_combined_is_named(options: dict[str, Any], option: str):
    given = {"return_dict_in_generate": True, "output_attentions": True, **options}
    with pytest.raises(OptionError) as caught:
        unspool.generate(model_of("llama"), WHOLE, **given)
    assert caught.value.option == option


def test_a_sampled_call_draws_the_same_tokens_with_and_without_states():
    given: dict[str, Any] = {"do_sample": True, "seed": 3, "max_new_tokens": 8, "return_dict_in_generate": True}
    plain = unspool.generate(model_of("llama"), IDS, attention_mask=MASK, **given)
    assert_equal(
        unspool.generate(model_of("llama"), IDS, attention_mask=MASK, **given, **STATES).sequences, plain.sequences
    )


def test_the_callers_model_and_mode_stay():
    model = copy.deepcopy(model_of("llama")).train()
    unspool.generate(model, WHOLE, max_new_tokens=2, return_dict_in_generate=True, output_hidden_states=True)
    assert model.training and all(module.training for module in model.modules())


# --- embeddings and switches ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_a_switch_of_the_forward_alone_is_no_input_of_the_prompt(options: dict[str, Any]):
    """XLNet's `use_mems` makes no prompt with media of its ids."""
    model = tiny_model("xlnet")
    given = {"use_mems": False, "max_new_tokens": 4, **options}
    assert unspool.generate(model, WHOLE, **given).equal(theirs(model, WHOLE, **given))


def test_a_cache_of_embeddings_is_compared_with_their_length():
    model = model_of("llama")
    embeds = model.get_input_embeddings()(WHOLE).detach()
    with torch.no_grad():
        cache = model(inputs_embeds=embeds[:, :2], use_cache=True).past_key_values
    given = {"inputs_embeds": embeds, "attention_mask": torch.ones_like(WHOLE), "max_new_tokens": 4}
    expected = theirs(model, **given, **{CACHE: copy.deepcopy(cache)})
    assert unspool.generate(model, **given, past_key_values=cache).equal(expected)

"""Masks with hidden columns behind tokens, rows without a token, masks of decoder prompts, and GIT without an image."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from transformers import StaticCache

import unspool
from tests.interop.test_own_forward import (
    DOORS,
    STATES,
    Door,
    assert_equal,
    assert_same_result,
    drop_in,
    inside,
    model_of,
    parts,
    theirs,
)
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.errors import PromptError

IDS = torch.tensor([[11, 12, 13, 90, 91], [21, 22, 23, 24, 25], [90, 31, 91, 32, 33]])
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 1]])
GIVEN: dict[str, Any] = {"attention_mask": MASK, "max_new_tokens": 6, "return_dict_in_generate": True}
WARNS = pytest.mark.filterwarnings("ignore:these options are ignored or act only in part")


def alone(model: Any, **options: Any) -> torch.Tensor:
    """Return what transformers writes behind each prompt without its hidden columns. --> [rows, new tokens]"""
    prompts = [row[kept.bool()][None] for row, kept in zip(IDS, MASK, strict=True)]
    return torch.cat([theirs(model, ids, max_new_tokens=6, **options)[:, ids.shape[1] :] for ids in prompts])


@WARNS
@DOORS
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_calls_with_a_static_cache_read_the_tokens_under_the_mask(door: Door, family: str, beams: int):
    model = model_of(family)
    found = door(model, IDS, cache_implementation="static", num_beams=beams, **GIVEN)
    assert found.sequences[:, 5:].equal(alone(model, num_beams=beams))
    assert isinstance(found.past_key_values, StaticCache)
    expected = theirs(model, IDS, cache_implementation="static", num_beams=beams, **GIVEN).past_key_values
    assert found.past_key_values.layers[0].keys.shape == expected.layers[0].keys.shape


@WARNS
@DOORS
@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_calls_with_states_read_the_tokens_under_the_mask(door: Door, family: str, beams: int):
    model = model_of(family)
    found = door(model, IDS, num_beams=beams, **STATES, **GIVEN)
    assert found.sequences[:, 5:].equal(alone(model, num_beams=beams))
    expected = theirs(model, IDS, num_beams=beams, **STATES, **GIVEN)
    for one, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        assert [layer.shape for layer in one] == [layer.shape for layer in other]


@WARNS
@pytest.mark.parametrize("reading", [{}, STATES], ids=["", "states"])
def test_token_types_continue_from_the_last_token(reading: dict[str, Any]):
    """The types of hidden columns never count."""
    model, types = model_of("gpt2"), torch.tensor([[1, 1, 2, 9, 9], [1, 1, 1, 1, 2], [9, 1, 9, 1, 2]])
    found = unspool.generate(model, IDS, token_type_ids=types, **reading, **GIVEN).sequences[:, 5:]
    for row, (ids, kept) in enumerate(zip(IDS, MASK.bool(), strict=True)):
        given = {"token_type_ids": types[row][kept][None], "max_new_tokens": 6}
        assert found[row].equal(theirs(model, ids[kept][None], **given)[0, kept.sum() :])


@pytest.mark.parametrize("inside", [{}, {"custom_generate": unspool.decoding_method}], ids=["drop-in", "inside"])
@pytest.mark.parametrize("family", ["llama", "mamba"])
@pytest.mark.parametrize("reading", [{}, {"output_hidden_states": True}], ids=["", "states"])
def test_a_row_without_a_token_reads_its_pads(inside: dict[str, Any], family: str, reading: dict[str, Any]):
    model, mask = tiny_model(family, seed=5), torch.tensor([[0] * 5, [1] * 5, [1] * 5])
    given = {**GIVEN, "attention_mask": mask, **reading}
    expected = theirs(model, IDS, **{**given, "attention_mask": torch.ones_like(mask)})
    door = partial(model.generate, **inside) if inside else partial(unspool.generate, model)
    with pytest.warns(UserWarning, match="leaves no token in row 0"):
        found = door(IDS, **given)
    assert found.sequences.equal(expected.sequences)
    with pytest.raises(PromptError, match="row 0 of the batch holds only pads"):
        door(IDS, **given, strict=True)


def test_embeddings_without_a_token_in_a_row_are_read_whole():
    model, mask = tiny_model("mamba"), torch.tensor([[0] * 5, [0, 1, 1, 1, 1], [1] * 5])
    embeds = model.get_input_embeddings()(IDS).detach()
    with pytest.warns(UserWarning, match="leaves no token in row 0"):
        found = unspool.generate(model, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=4)
    mask[0] = 1
    assert found.equal(unspool.generate(model, inputs_embeds=embeds, attention_mask=mask, max_new_tokens=4))


@pytest.mark.parametrize("reading", ["input_ids", "inputs_embeds"])
def test_a_source_without_a_token_under_its_mask_is_read_whole(reading: str):
    model, mask = tiny_seq2seq("t5"), torch.tensor([[0] * 5, [1, 1, 1, 0, 0], [1] * 5])
    given = {"input_ids": IDS} if reading == "input_ids" else {"inputs_embeds": model.get_input_embeddings()(IDS)}
    with pytest.warns(UserWarning, match="leaves no token in row 0"):
        found = unspool.generate(model, **given, attention_mask=mask, max_new_tokens=6)
    whole = mask.clone()
    whole[0] = 1
    assert found.equal(theirs(model, **given, attention_mask=whole, max_new_tokens=6))
    with pytest.raises(PromptError, match="row 0 of the batch holds only pads"):
        unspool.generate(model, **given, attention_mask=mask, max_new_tokens=6, strict=True)


@DOORS
@pytest.mark.parametrize("family", ["t5", "bart"])
@pytest.mark.parametrize("hidden", [[], [2]], ids=["", "with a hidden token"])
def test_a_mask_of_decoder_prompts_is_read_as_in_transformers(door: Door, family: str, hidden: list[int]):
    model, mask = tiny_seq2seq(family), torch.ones(3, 5, dtype=torch.int64)
    mask[1, hidden] = 0
    given = {"decoder_input_ids": IDS, "decoder_attention_mask": mask, "max_new_tokens": 5}
    given |= {"return_dict_in_generate": True, "output_scores": True}
    found, expected = door(model, IDS, **given), theirs(model, IDS, **given)
    assert_same_result(found, expected)
    assert_equal(found.scores, expected.scores)
    assert_equal(tuple(parts(found.past_key_values)), tuple(parts(expected.past_key_values)))


@pytest.mark.parametrize("beams", [1, 2])
def test_an_encoder_decoder_continues_from_its_own_cache_under_a_mask(beams: int):
    model, source, ids = tiny_seq2seq("bart"), IDS[1:2], torch.tensor([[21, 22, 23]])
    given = {"return_dict_in_generate": True, "eos_token_id": None, "forced_eos_token_id": None}
    masked = {"decoder_input_ids": ids, "decoder_attention_mask": torch.ones_like(ids)}
    whole = theirs(model, source, max_new_tokens=4, **masked, **given).sequences
    first = unspool.generate(model, source, max_new_tokens=3, **masked, **given)
    rest = {"decoder_input_ids": first.sequences, "decoder_attention_mask": torch.ones_like(first.sequences)}
    last = unspool.generate(model, source, max_new_tokens=1, past_key_values=first.past_key_values, **rest, **given)
    assert last.sequences.equal(whole)


@DOORS
@pytest.mark.parametrize("beams", [1, 2])
def test_git_without_an_image_is_a_plain_decoder(door: Door, beams: int):
    model = tiny_seq2seq("git")
    given = {"max_new_tokens": 5, "num_beams": beams}
    assert door(model, IDS[1:2], **given).equal(theirs(model, IDS[1:2], **given))
    embeds = model.get_input_embeddings()(IDS).detach()
    given |= {"inputs_embeds": embeds, "attention_mask": torch.ones_like(IDS)}
    assert door(model, **given).equal(theirs(model, **given))


def test_git_reads_an_image_beside_embeddings():
    model = tiny_seq2seq("git")
    size = model.config.vision_config.image_size
    given = {"pixel_values": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1))}
    given |= {"inputs_embeds": model.get_input_embeddings()(IDS).detach(), "input_ids": IDS, "max_new_tokens": 5}
    expected = theirs(model, **given)
    assert drop_in(model, **given).equal(expected) and inside(model, **given).equal(expected)

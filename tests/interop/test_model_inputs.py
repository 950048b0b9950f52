"""Prompts with embeddings, images and audio through the drop-in: tokens and scores are those of transformers."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_multimodal import FAMILIES, alone, prompts_of, tiny_multimodal
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.engines import driver_of
from unspool.errors import ModelError, OptionError, PromptError

LENGTHS: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
SCORES: dict[str, Any] = {"return_dict_in_generate": True, "output_scores": True}
OPTIONS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.8},
    "processors": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "one candidate": {"do_sample": True, "top_k": 1},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def assert_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected)
    assert found.sequences.tolist() == expected.sequences.tolist()
    for one, other in zip(found.scores, expected.scores, strict=True):
        allowed = one.isfinite().sum(1) > 1  # rows that have ended hold nothing but their pad
        torch.testing.assert_close(one[allowed], other[allowed], rtol=1e-4, atol=1e-4)


def _cells() -> list[tuple[str, str]]:
    usual = [(family, name) for family in FAMILIES for name in ("greedy", "beams", "processors")]
    return [
        *usual,
        *((family, name) for family in ("llava", "qwen2_5_vl") for name in ("one candidate", "prompt lookup")),
    ]


@pytest.mark.parametrize(("family", "name"), _cells())
def test_tokens_and_scores_of_a_padded_batch_are_those_of_transformers(family: str, name: str):
    model, inputs = tiny_multimodal(family), prompts_of(family)
    if name == "prompt lookup":  # transformers reads one row at a time here
        inputs = alone(family, inputs, 1)
    options = {**LENGTHS, **SCORES, **OPTIONS[name]}
    assert_same(unspool.generate(model, **inputs, **options), model.generate(**inputs, **options))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_decoding_method_reads_images_and_audio_too(family: str, beams: int):
    model, inputs = tiny_multimodal(family), prompts_of(family)
    options = {**LENGTHS, **SCORES, "num_beams": beams}
    found = model.generate(**inputs, **options, custom_generate=unspool.decoding_method)
    assert_same(found, model.generate(**inputs, **options))


@pytest.mark.parametrize("gives_ids", [True, False], ids=["with ids", "without ids"])
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"min_length": 9, "max_length": 12}], ids=str)
def test_the_decoding_method_reads_embeddings_too(options: dict[str, Any], gives_ids: bool):
    model, ids = tiny_model("llama"), torch.tensor([[0, 0, 11, 12, 13], [21, 22, 23, 24, 25]])
    given = {"inputs_embeds": model.get_input_embeddings()(ids).detach(), "attention_mask": (ids != 0).long()}
    given |= {"input_ids": ids} if gives_ids else {}
    given |= {**SCORES, "max_new_tokens": 6, **options} if "max_length" not in options else {**SCORES, **options}
    found = model.generate(**given, custom_generate=unspool.decoding_method)
    assert_same(found, model.generate(**given))


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("gives_ids", [True, False], ids=["with ids", "without ids"])
def test_embeddings_inside_generate_have_the_positions_of_their_ids(gives_ids: bool, beams: int):
    """transformers counts pads as positions in decoders of BART's kind; here ids and embeddings did not agree."""
    model = _bart_decoder()
    ids = torch.tensor([[1, 1, 1, 11, 12], [21, 22, 23, 24, 25]])
    given: dict[str, Any] = {"attention_mask": (ids != 1).long(), "max_new_tokens": 6, "num_beams": beams}
    method = {"custom_generate": unspool.decoding_method}
    by_ids = model.generate(ids, **given, **method)
    embeds = {"inputs_embeds": model.get_input_embeddings()(ids).detach(), **({"input_ids": ids} if gives_ids else {})}
    found = model.generate(**embeds, **given, **method)
    assert found.equal(by_ids if gives_ids else by_ids[:, 5:])
    assert by_ids[0, 3:].equal(model.generate(ids[:1, 3:], max_new_tokens=6, num_beams=beams)[0])
    assert not by_ids.equal(model.generate(ids, **given))


@pytest.mark.filterwarnings("ignore:these options are ignored")
def test_embeddings_inside_generate_skip_hidden_columns_as_their_ids_do():
    model = _bart_decoder()
    ids = torch.tensor([[11, 12, 13, 14, 15], [21, 22, 23, 24, 25]])
    mask = torch.tensor([[1, 1, 0, 1, 0], [0, 1, 1, 1, 1]])
    method: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 6, "custom_generate": unspool.decoding_method}
    embeds = model.get_input_embeddings()(ids).detach()
    by_ids = model.generate(ids, **method)
    assert model.generate(inputs_embeds=embeds, **method).equal(by_ids[:, 5:])
    for row in (0, 1):
        alone = model.generate(ids[row, mask[row].bool()][None], max_new_tokens=6)
        assert alone[0, -6:].equal(by_ids[row, 5:])


@pytest.mark.parametrize("family", ["bart", "bloom"])
def test_the_decoding_method_reads_embeddings_without_a_mask_of_ones(family: str):
    model: Any = _bart_decoder() if family == "bart" else tiny_model("bloom")
    embeds = model.get_input_embeddings()(torch.tensor([[11, 12, 13], [21, 22, 23]])).detach()
    found = model.generate(inputs_embeds=embeds, max_new_tokens=6, custom_generate=unspool.decoding_method)
    assert found.equal(model.generate(inputs_embeds=embeds, max_new_tokens=6))


def test_embeddings_can_stand_behind_pixels():
    """transformers fails here: it takes the number of pixel rows for that of the prompts."""
    model, inputs = tiny_multimodal("qwen2_5_vl"), prompts_of("qwen2_5_vl")
    embeds = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
    expected = model.generate(inputs_embeds=embeds, **inputs, **LENGTHS, num_beams=2)
    assert unspool.generate(model, **inputs, inputs_embeds=embeds, **LENGTHS, num_beams=2).equal(expected)


@cache
def _bart_decoder() -> Any:
    config = transformers.BartConfig(
        vocab_size=100,
        d_model=16,
        decoder_layers=2,
        decoder_attention_heads=2,
        decoder_ffn_dim=32,
        max_position_embeddings=64,
        init_std=0.5,
        eos_token_id=2,
        forced_eos_token_id=None,
        is_decoder=True,
        is_encoder_decoder=False,
    )
    torch.manual_seed(0)
    return transformers.BartForCausalLM(config).eval()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "paligemma"])
def test_a_prompt_writes_the_same_alone_and_in_a_batch(family: str):
    model, inputs = tiny_multimodal(family), prompts_of(family)
    options: dict[str, Any] = {**LENGTHS, "do_sample": True, "seed": 3}
    both = unspool.generate(model, **inputs, **LENGTHS)[:, -6:]
    for row in (0, 1):
        only = unspool.generate(model, **alone(family, inputs, row), **LENGTHS)[:, -6:]
        assert only.tolist() == both[row : row + 1].tolist()
    drawn = unspool.generate(model, **alone(family, inputs, 0), **options)
    assert drawn.equal(unspool.generate(model, **alone(family, inputs, 0), **options))


def test_another_image_gives_other_tokens_and_the_first_image_its_own_again():
    model, inputs = tiny_multimodal("llava"), alone("llava", prompts_of("llava"), 0)
    other = {**inputs, "pixel_values": inputs["pixel_values"].flip(-1) * 2}
    first, second, again = (unspool.generate(model, **given, **LENGTHS) for given in (inputs, other, inputs))
    assert first.equal(again) and not first.equal(second)
    assert second.equal(model.generate(**other, **LENGTHS))


def test_keys_of_an_image_are_never_those_of_a_text_with_the_same_ids():
    model, inputs = tiny_multimodal("llava"), alone("llava", prompts_of("llava"), 0)
    ids = inputs["input_ids"].repeat(1, 8)  # long enough for the prefix cache
    pictured = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    pictured["pixel_values"] = inputs["pixel_values"].repeat(8, 1, 1, 1)
    for _ in range(2):
        for given in (pictured, {"input_ids": ids}):
            assert unspool.generate(model, **given, **LENGTHS).equal(model.generate(**given, **LENGTHS))


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom", "mamba"])
@pytest.mark.parametrize("gives_ids", [False, True])
@pytest.mark.filterwarnings("ignore:Passing `:UserWarning")
def test_embeddings_are_read_as_a_prompt(family: str, gives_ids: bool):
    model = tiny_model(family)
    pad = 96  # no output holds it: n-gram rules of transformers would see the padding
    ids = torch.tensor([[pad, pad, 11, 12, 13, 14, 15, 16], [21, 22, 23, 24, 25, 26, 27, 28]])
    if family == "mamba":
        ids = ids[1:]
    given: dict[str, Any] = {"attention_mask": (ids != pad).long()}
    given["inputs_embeds"] = model.get_input_embeddings()(ids).detach() * 1.1
    given |= {"input_ids": ids} if gives_ids else {}
    for options in (OPTIONS["greedy"], OPTIONS["beams"], OPTIONS["processors"], {"max_length": 12, "min_length": 12}):
        options = {**LENGTHS, **SCORES, "pad_token_id": pad, "eos_token_id": 2, **options}
        if "max_length" in options:
            del options["max_new_tokens"], options["min_new_tokens"]
        if "repetition_penalty" in options and not gives_ids:  # transformers ignores as many outputs as there are pads
            given = {name: value[-1:] for name, value in given.items()}
        assert_same(unspool.generate(model, **given, **options), model.generate(**given, **options))


def test_the_embeddings_of_a_prompt_write_the_tokens_of_its_ids():
    model = tiny_model("llama")
    ids = torch.tensor([[11, 12, 13, 14, 15]])
    embeds = model.get_input_embeddings()(ids).detach()
    written = unspool.generate(model, ids, **LENGTHS)[:, 5:]
    assert unspool.generate(model, inputs_embeds=embeds, **LENGTHS).equal(written)


@pytest.mark.parametrize(
    "options",
    [{"penalty_alpha": 0.6, "top_k": 4}, {"dola_layers": "low"}, {"num_beam_groups": 2, "num_beams": 4}],
    ids=str,
)
def test_strategies_of_our_own_read_embeddings_as_they_read_ids(options: dict[str, Any]):
    model = tiny_model("llama")
    ids = torch.tensor([[0, 0, 11, 12, 13], [21, 22, 23, 24, 25]])
    given: dict[str, Any] = {"input_ids": ids, "attention_mask": (ids != 0).long()}
    options = {"max_new_tokens": 6, **options} | ({"diversity_penalty": 0.7} if "num_beam_groups" in options else {})
    expected = unspool.generate(model, **given, **options)
    embeds = model.get_input_embeddings()(ids).detach()
    assert unspool.generate(model, **given, inputs_embeds=embeds, **options).equal(expected)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_an_encoder_reads_embeddings(family: str):
    model = tiny_seq2seq(family)
    ids = torch.tensor([[11, 12, 13, 0, 0], [21, 22, 23, 24, 25]])
    given = {"inputs_embeds": model.get_input_embeddings()(ids).detach(), "attention_mask": (ids != 0).long()}
    for options in ({}, OPTIONS["beams"]):
        options = {**LENGTHS, **SCORES, **options}
        assert_same(unspool.generate(model, **given, **options), model.generate(**given, **options))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
def test_padding_on_the_right_is_moved_to_the_left(family: str):
    model, inputs = tiny_multimodal(family), prompts_of(family)
    width = inputs["input_ids"].shape[1]
    shift = int((inputs["attention_mask"][1] == 0).sum())
    right = {
        name: torch.stack([value[0], value[1].roll(-shift, 0)]) if value.shape[:2] == (2, width) else value
        for name, value in inputs.items()
    }
    with pytest.warns(UserWarning, match="padded on the right"):
        found = unspool.generate(model, **right, **LENGTHS)
    assert found[:, width:].equal(unspool.generate(model, **inputs, **LENGTHS)[:, width:])


def test_a_streamer_gets_the_tokens_behind_an_image():
    class Streamer:
        def __init__(self) -> None:
            self.tokens: list[int] = []

        def put(self, value: torch.Tensor) -> None:
            self.tokens += value.flatten().tolist()

        def end(self) -> None:
            pass

    model, inputs = tiny_multimodal("qwen2_5_vl"), alone("qwen2_5_vl", prompts_of("qwen2_5_vl"), 1)
    streamer = Streamer()
    written = unspool.generate(model, **inputs, **LENGTHS, streamer=streamer)
    assert streamer.tokens == written[0].tolist()


def test_a_language_model_on_the_slot_cache_decodes_there():
    for family in ("llava", "qwen2_5_vl", "gemma3", "mistral3"):
        assert driver_of(tiny_multimodal(family)).engine.runtime.info.backend.startswith("slot cache")


def test_hooks_of_the_caller_see_the_prompt_once():
    model, inputs = tiny_multimodal("llava"), alone("llava", prompts_of("llava"), 0)
    lengths: list[int] = []
    language_model = model.model.language_model
    handle = language_model.layers[0].register_forward_hook(lambda *call: lengths.append(call[2].shape[1]))
    try:
        hooked = unspool.generate(model, **inputs, **LENGTHS)
        assert lengths == [inputs["input_ids"].shape[1], 1, 1, 1, 1, 1]
    finally:
        handle.remove()
    assert hooked.equal(model.generate(**inputs, **LENGTHS))


def test_a_weight_change_is_seen():
    model, inputs = tiny_multimodal("mistral3"), alone("mistral3", prompts_of("mistral3"), 0)
    before = unspool.generate(model, **inputs, **LENGTHS)
    weight = model.get_input_embeddings().weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.copy_(kept.flip(0))
    try:
        after = unspool.generate(model, **inputs, **LENGTHS)
        assert after.equal(model.generate(**inputs, **LENGTHS)) and not after.equal(before)
    finally:
        with torch.no_grad():
            weight.copy_(kept)


@pytest.mark.parametrize(
    ("family", "change", "error", "words"),
    [
        ("llava", {"batch_invariant": True}, OptionError, "batch_invariant"),
        ("llava", {"pixel_values": torch.zeros(1, 3, 8, 8)}, ModelError, "cannot read the prompt"),
        ("llava", {"nonsense": 1}, OptionError, "nonsense"),
        ("llava", {"input_ids": None}, PromptError, "give `input_ids` beside `pixel_values`"),
        ("llava", {"inputs_embeds": torch.zeros(2, 3, 32)}, PromptError, "as many rows and columns"),
    ],
)
def test_errors_name_the_argument(family: str, change: dict[str, Any], error: type[Exception], words: str):
    inputs = {**prompts_of(family), **change}
    with pytest.raises(error, match=words):
        unspool.generate(tiny_multimodal(family), **inputs, **LENGTHS)


def test_a_model_that_reads_whole_sequences_refuses_embeddings():
    model = tiny_model("recurrent_gemma")
    refused = partial(unspool.generate, model, inputs_embeds=torch.zeros(1, 3, 32), max_new_tokens=2)
    with pytest.raises(PromptError, match="neither an encoder's input nor embeddings"):
        refused()

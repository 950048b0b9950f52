"""load(): folders, loaded models, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import NUM_FRAMES, NUM_MEL_BINS, tiny_seq2seq
from unspool import LanguageModel, ModelError, OptionError, PromptError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.half().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def test_a_folder_is_loaded_with_its_tokenizer_and_float16_is_widened_on_a_cpu(folder: Path) -> None:
    lm = unspool.load(folder)
    assert isinstance(lm, LanguageModel)
    assert "float32" in lm.info.backend
    result = lm.generate("the fox", max_new_tokens=8)
    assert result.usage.completion_tokens == 8 or result.completions[0].finish_reason == "eos"


def test_dtype_is_the_users_to_choose(folder: Path) -> None:
    for dtype in ("bfloat16", torch.bfloat16, "torch.bfloat16"):
        assert "bfloat16" in unspool.load(folder, dtype=dtype).info.backend
    with pytest.raises(ModelError, match="`dtype` must be a floating-point dtype.*'int7'"):
        unspool.load(folder, dtype="int7")


def test_options_of_from_pretrained_pass_through(folder: Path) -> None:
    pytest.importorskip("accelerate")
    plain = unspool.load(folder).generate("the fox", max_new_tokens=6)
    mapped = unspool.load(folder, device_map="auto", revision="main", trust_remote_code=False)
    assert mapped.generate("the fox", max_new_tokens=6).text == plain.text
    with pytest.raises(ModelError, match="no_such_option"):
        unspool.load(folder, no_such_option=1)


def test_a_loaded_model_is_used_as_it_is_and_without_a_tokenizer_reads_ids() -> None:
    model = tiny_model("gpt2")
    lm = unspool.load(model)
    assert lm.generate([5, 6], max_new_tokens=3).completions[0].token_ids == tuple(
        model.generate(torch.tensor([[5, 6]]), max_new_tokens=3, do_sample=False)[0, 2:].tolist()
    )
    with pytest.raises(PromptError, match="needs a tokenizer"):
        lm.generate("text")
    assert unspool.load(model, tokenizer=byte_level()).tokenizer is byte_level()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ("/nowhere/at/all", {}, "'/nowhere/at/all': it does not exist; give a model's folder"),
        ("./nowhere", {}, "it does not exist"),
        (__file__, {}, "is a file, not a folder"),
        (123, {}, "a model is a name, a folder or a loaded"),
        (".", {"dtype": 5}, "`dtype` must be"),
        ("no-such-model-anywhere", {"tokenizer": 123}, "cannot load"),
        ("no-such-model-anywhere", {}, "cannot load 'no-such-model-anywhere'"),
    ],
)
def test_what_cannot_be_loaded_is_said_in_one_line(given: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        unspool.load(given, **options)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_said_in_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match="cannot load") as caught:
        unspool.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("option", "value"),
    [("max_batch_tokens", 0), ("max_cache_tokens", -1), ("max_sequences", 1.5), ("pack", "yes"), ("pack", None)],
)
def test_limits_are_checked_before_anything_is_loaded(option: str, value: Any) -> None:
    with pytest.raises(unspool.OptionError) as caught:
        unspool.load(tiny_model("gpt2"), **{option: value})
    assert caught.value.option == option


def test_options_of_loading_are_refused_for_a_loaded_model() -> None:
    for option in ({"dtype": "float32"}, {"device": "cpu"}, {"revision": "main"}):
        with pytest.raises(ModelError, match=f"`{next(iter(option))}` is an option of loading"):
            unspool.load(tiny_model("gpt2"), **option)


def test_an_encoder_decoder_reads_its_prompt_as_a_source() -> None:
    model = tiny_seq2seq("t5")
    lm = unspool.load(model)
    written = model.generate(torch.tensor([[5, 6, 7, 8]]), max_new_tokens=6, do_sample=False)
    found = lm.generate([5, 6, 7, 8], max_new_tokens=6)
    start = (model.config.decoder_start_token_id,)
    assert found.prompt_token_ids == start
    assert [*start, *found.completions[0].token_ids] == written[0].tolist()[: 1 + len(found.completions[0].token_ids)]
    both = lm.generate([[5, 6, 7, 8], [9, 10]], max_new_tokens=6, num_beams=2)
    alone = lm.generate([5, 6, 7, 8], max_new_tokens=6, num_beams=2)
    assert both[0].completions[0].token_ids == alone.completions[0].token_ids


def test_how_the_output_begins_can_be_said_for_models_with_an_encoder_alone() -> None:
    lm, decoder = unspool.load(tiny_seq2seq("t5")), unspool.load(tiny_model("gpt2"))
    begun = lm.generate([5, 6], decoder_input_ids=[7, 8], max_new_tokens=3)
    assert begun.prompt_token_ids == (0, 7, 8)
    assert lm.generate([5, 6], decoder_start_token_id=9, max_new_tokens=3).prompt_token_ids == (9,)
    for options in ({"decoder_input_ids": [7]}, {"decoder_start_token_id": 7}, {"language": "de"}):
        with pytest.raises(OptionError, match=f"{next(iter(options))}.*has none"):
            decoder.generate([5, 6], max_new_tokens=3, **options)
    with pytest.raises(OptionError, match=r"language.*speech models"):
        lm.generate([5, 6], language="de")
    with pytest.raises(OptionError, match="echo.*does not continue the prompt"):
        lm.generate([5, 6], echo=True)


def test_memory_can_be_bounded() -> None:
    lm = unspool.load(tiny_model("llama"), max_cache_tokens=40, max_sequences=2)
    results = lm.generate([[5], [6], [7], [8]], max_new_tokens=15)
    assert [r.completions[0].finish_reason for r in results] == ["length"] * 4 or all(results)
    with pytest.raises(unspool.CapacityError, match="max_cache_tokens"):
        lm.generate([5], max_new_tokens=60)


@pytest.mark.model
def test_the_embedded_model_tells_a_tale_without_a_network() -> None:
    lm = unspool.load()
    text = lm.generate("Once upon a time", max_new_tokens=40).text
    words = text.split()
    assert len(words) >= 20
    assert sum(word.strip(".,;:!?\"'").isalpha() for word in words) >= 0.9 * len(words)


@pytest.mark.model
def test_the_embedded_models_are_small_and_store_no_sampling() -> None:
    from unspool.config import GenerationConfig
    from unspool.loading.load import EMBEDDED

    weights = sum(path.stat().st_size for path in EMBEDDED.rglob("*.safetensors"))
    assert weights <= 20_000_000
    assert GenerationConfig.from_pretrained(EMBEDDED).do_sample is None
    draft = unspool.load(EMBEDDED / "draft")
    assert draft.info.vocab_size == unspool.load().info.vocab_size


def test_a_folder_without_a_tokenizer_reads_token_ids(tmp_path: Path) -> None:
    for family in ("gpt2", "llama"):
        tiny_model(family).save_pretrained(tmp_path / family)
        lm = unspool.load(tmp_path / family)
        assert lm.tokenizer is None
        assert len(lm.generate([5, 6], max_new_tokens=3, ignore_eos=True).completions[0].token_ids) == 3
        with pytest.raises(PromptError, match="needs a tokenizer"):
            lm.generate("Hello")


def test_a_source_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(PromptError, match="source token 2 is 700, outside the vocabulary of"):
        unspool.load(tiny_seq2seq("bart")).generate([5, 6, 700])


def test_guidance_of_an_encoder_decoder_reads_another_source() -> None:
    lm = unspool.load(tiny_seq2seq("t5"))
    options = {"max_new_tokens": 6, "ignore_eos": True}
    with pytest.raises(OptionError, match=r"guidance_scale.*needs `negative_prompt`"):
        lm.generate([5, 6, 7], guidance_scale=2.0, **options)
    away = lm.generate([5, 6, 7], guidance_scale=0.0, negative_prompt=[9, 10], **options)
    assert away.completions[0].token_ids == lm.generate([9, 10], **options).completions[0].token_ids
    guided = lm.generate([5, 6, 7], guidance_scale=3.0, negative_prompt=[9, 10], **options)
    assert guided.completions[0].token_ids != lm.generate([5, 6, 7], **options).completions[0].token_ids


def test_a_draft_model_reads_what_the_model_reads() -> None:
    lm = unspool.load(tiny_seq2seq("t5"))
    with pytest.raises(OptionError, match="assistant_model.*must read text.*reads audio"):
        lm.generate([5, 6], assistant_model=unspool.load(tiny_seq2seq("whisper", vocab_size=lm.info.vocab_size)))


def test_a_speech_models_language_is_heard_and_can_be_said() -> None:
    model = tiny_seq2seq("whisper")
    model.generation_config.lang_to_id = {"<|en|>": 20, "<|de|>": 21}
    model.generation_config.task_to_id = {"transcribe": 30, "translate": 31}
    model.generation_config.no_timestamps_token_id = 40
    lm = unspool.load(model)
    start = model.generation_config.decoder_start_token_id
    audio = torch.randn(NUM_MEL_BINS, NUM_FRAMES, generator=torch.Generator().manual_seed(1))
    told = lm.generate(audio, language="german", task="translate", max_new_tokens=3)
    assert told.prompt_token_ids == (start, 21, 31, 40)
    assert lm.generate(audio, max_new_tokens=3).prompt_token_ids[1] in (20, 21)
    with pytest.raises(OptionError, match=r"language.*en, de|language.*de, en"):
        lm.generate(audio, language="xx")
    both = lm.generate([audio, audio], language=["de", "en"], max_new_tokens=2)
    assert [each.prompt_token_ids[1] for each in both] == [21, 20]
    with pytest.raises(OptionError, match=r"language.*one per prompt"):
        lm.generate([audio, audio], language=["en"])
    with pytest.raises(OptionError, match=r"language.*must be a name"):
        lm.generate(audio, language=3)

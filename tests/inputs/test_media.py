"""Prompts with images and audio in the native API: through the model's processor, with every way to call."""

from __future__ import annotations

import asyncio
import base64
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2AudioProcessor, WhisperFeatureExtractor, processing_utils

import unspool
from tests.media import MARK, TinyProcessor, letters
from tests.tiny_models import tiny_model
from tests.tiny_multimodal import IMAGE, tiny_multimodal
from tests.tiny_seq2seq import tiny_seq2seq
from unspool import LanguageModel, OptionError, PromptError

LENGTHS: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6}


@cache
def loaded(family: str) -> LanguageModel:
    return unspool.load(tiny_multimodal(family), tokenizer=letters(), processor=TinyProcessor(letters(), family))


def picture(family: str, number: int) -> Any:
    generator = torch.Generator().manual_seed(number)
    shape = (16, 48) if family == "qwen2_5_vl" else (3, 8, 8)
    return torch.randn(*shape, generator=generator)


def tokens(written: unspool.Generation) -> list[int]:
    return list(written.completions[0].token_ids)


def theirs(lm: LanguageModel, text: str, *pictures: Any, **options: Any) -> list[list[int]]:
    """Return the outputs of transformers' `generate` for one prompt."""
    inputs = lm.processor(text, list(pictures))
    found = lm.model.generate(**inputs, do_sample=False, **LENGTHS, **options)
    rows: list[list[int]] = found[:, inputs["input_ids"].shape[1] :].tolist()
    return rows


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_one_prompt_with_one_image_or_several(family: str):
    lm = loaded(family)
    one, two = picture(family, 1), picture(family, 2)
    written = lm.generate(f"who is {MARK}?", images=one, **LENGTHS)
    assert tokens(written) == theirs(lm, f"who is {MARK}?", one)[0]
    assert written.prompt == f"who is {MARK}?"
    several = lm.generate(f"{MARK} or {MARK}?", images=[one, two], num_beams=3, num_return_sequences=2, **LENGTHS)
    expected = theirs(lm, f"{MARK} or {MARK}?", one, two, num_beams=3, num_return_sequences=2)
    assert [list(each.token_ids) for each in several.completions] == expected


STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.5},
    "penalties": {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "one candidate": {"temperature": 0.7, "top_k": 1},
    "lookup": {"prompt_lookup_num_tokens": 2},
}
"""Options of strategies whose tokens are those of transformers."""

DRAWN: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 5.0, "top_k": 20, "seed": 3, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True, "temperature": 5.0, "top_k": 20, "seed": 3},
    "diverse beams": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.7},
    "contrastive": {"penalty_alpha": 0.5, "top_k": 4},
    "constrained": {"num_beams": 3, "force_words_ids": [[30, 31]]},
    "best of": {"best_of": 3, "do_sample": True, "temperature": 5.0, "top_k": 20, "seed": 3},
    "stochastic beams": {"num_beams": 3, "strategy": "stochastic_beam", "top_k": 20, "seed": 3},
}
"""Options of strategies that transformers lacks, or whose draws differ: equal to those of the language model alone."""


def outputs(lm: LanguageModel, text: str, *pictures: Any, **options: Any) -> list[list[int]]:
    """Return the outputs of transformers' `generate` for one prompt, without a decoder's start token."""
    inputs = lm.processor(text, list(pictures))
    found = lm.model.generate(**inputs, **{"do_sample": False, **LENGTHS, **options})
    rows: list[list[int]] = found[:, 1 if lm.info.needs_source else inputs["input_ids"].shape[1] :].tolist()
    return rows


@pytest.mark.parametrize("family", ["blip_2", "blip_2_t5", "instructblip", "instructblip_t5"])
def test_models_that_decode_with_a_language_model_read_images_in_every_way_to_call(family: str):
    lm, one, two = loaded(family), picture(family, 1), picture(family, 2)
    text, other = f"{MARK} who is it?", f"{MARK} a?"
    expected = outputs(lm, text, one)[0]
    assert tokens(lm.generate(text, images=one, **LENGTHS)) == expected != outputs(lm, text, two)[0]
    beams = {"num_beams": 3, "num_return_sequences": 2}
    several = lm.generate([text, other, "plain text?"], images=[one, two, None], **beams, **LENGTHS)
    for written, prompt in zip(several, [(text, one), (other, two)], strict=False):
        assert [list(each.token_ids) for each in written.completions] == outputs(lm, *prompt, **beams)
    assert [list(each.token_ids) for each in several[2].completions] == _plain(
        lm, lm.processor("plain text?")["input_ids"], **beams
    )
    assert [written.prompt for written in several] == [text, other, "plain text?"]
    stream = lm.stream(text, images=one, **LENGTHS)
    assert [token for chunk in stream for token in chunk.token_ids] == expected
    asked = f"{MARK}who is it?/user/a:"
    talk = lm.chat("who is it?", images=one, **LENGTHS)
    assert tokens(talk) == outputs(lm, asked, one)[0]
    with lm.chat("who is it?", images=one, stream=True, **LENGTHS) as answer:
        assert "".join(chunk.text for chunk in answer) == talk.text
    read = torch.tensor([lm.tokenizer("plain text?").input_ids])
    assert tokens(lm.generate("plain text?", **LENGTHS)) == _plain(lm, read)[0]


def _plain(lm: LanguageModel, ids: torch.Tensor, **options: Any) -> list[list[int]]:
    """Return the outputs of transformers for a text alone, by the language model."""
    found = lm.model.language_model.generate(ids, do_sample=False, **LENGTHS, **options)
    rows: list[list[int]] = found[:, 1 if lm.info.needs_source else ids.shape[1] :].tolist()
    return rows


@pytest.mark.parametrize("strategy", [*STRATEGIES, *DRAWN])
@pytest.mark.parametrize("family", ["blip_2_t5", "instructblip_t5"])
def test_all_strategies_read_images_before_an_encoder(family: str, strategy: str):
    lm, one = loaded(family), picture(family, 1)
    text = f"{MARK} who is it?"
    options = (STRATEGIES | DRAWN)[strategy]
    written = lm.generate(text, images=one, **options, **LENGTHS)
    found = [list(each.token_ids) for each in written.completions]
    if strategy in STRATEGIES:
        assert found == outputs(lm, text, one, **options)
        return
    encoded = {"encoder_outputs": encoder_outputs(lm, text, one)}
    assert found == unspool.generate(lm.model.language_model, **encoded, **options, **LENGTHS)[:, 1:].tolist()


def encoder_outputs(lm: LanguageModel, text: str, image: Any) -> Any:
    """Return the output of the language model's encoder, as transformers makes it."""
    kept = []

    def capture(model: Any, ids: torch.Tensor, **given: Any) -> torch.Tensor:
        kept.append(given["encoder_outputs"])
        return ids

    lm.model.generate(**lm.processor(text, [image]), custom_generate=capture, max_new_tokens=1)
    return kept[0]


def test_options_of_the_decoder_prompt_act_beside_images():
    lm, one = loaded("blip_2_t5"), picture("blip_2_t5", 1)
    text = f"{MARK} who is it?"
    begun = lm.generate(text, images=one, decoder_input_ids=[0, 40, 41], **LENGTHS)
    inputs = lm.processor(text, [one])
    theirs = lm.model.generate(**inputs, decoder_input_ids=torch.tensor([[0, 40, 41]]), do_sample=False, **LENGTHS)
    assert tokens(begun) == theirs[0, 3:].tolist() != outputs(lm, text, one)[0]
    with pytest.raises(OptionError, match="`decoder_input_ids` is read by models with an encoder"):
        loaded("llava").generate(text, images=one, decoder_input_ids=[5])


def test_several_prompts_take_one_entry_each():
    lm = loaded("llava")
    pictures = [picture("llava", number) for number in range(3)]
    prompts = [f"a {MARK}?", "plain text?", f"{MARK} {MARK}?"]
    written = lm.generate(prompts, images=[pictures[0], None, pictures[1:]], **LENGTHS)
    alone = [theirs(lm, prompts[0], pictures[0]), theirs(lm, prompts[1]), theirs(lm, prompts[2], *pictures[1:])]
    assert [[tokens(each)] for each in written] == alone


def test_a_stream_writes_the_same_text():
    lm, one = loaded("qwen2_5_vl"), picture("qwen2_5_vl", 1)
    options: dict[str, Any] = {"images": one, "temperature": 0.8, "seed": 5, **LENGTHS}
    whole = lm.generate(f"a {MARK}?", **options)
    stream = lm.stream(f"a {MARK}?", **options)
    assert "".join(chunk.text for chunk in stream) == whole.text
    assert tokens(stream.generation) == tokens(whole)

    async def collected() -> str:
        return "".join([chunk.text async for chunk in lm.astream(f"a {MARK}?", **options)])

    assert asyncio.run(collected()) == whole.text


def test_different_images_draw_different_noise_and_equal_ones_the_same():
    lm = loaded("llava")
    options: dict[str, Any] = {"temperature": 50.0, "seed": 3, "max_new_tokens": 12}
    drawn = [tokens(lm.generate(f"a {MARK}?", images=picture("llava", number), **options)) for number in (1, 2, 1)]
    assert drawn[0] == drawn[2] != drawn[1]


@pytest.mark.parametrize("form", ["parts", "option", "address"])
def test_a_chat_reads_parts_of_messages(form: str):
    lm, one = loaded("llava"), picture("llava", 1)
    turn: Any = [{"role": "user", "content": "who?"}]
    options: dict[str, Any] = dict(LENGTHS)
    parts = [{"type": "image", "image": one}, {"type": "text", "text": "who?"}]
    if form == "parts":
        turn = [{"role": "user", "content": parts}]
    elif form == "option":
        options["images"] = one
    else:
        turn = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file"}}, parts[1]]}]
        with pytest.raises(PromptError, match="the processor rejects these messages: 'image'"):
            lm.chat(turn, **options)  # transformers' processors open addresses; ours does not
        return
    answer = lm.chat(turn, **options)
    assert tokens(answer) == theirs(lm, f"{MARK}who?/user/a:", one)[0]
    assert answer.messages[0]["content"] == parts
    streamed = lm.chat(turn, stream=True, **options)
    assert "".join(chunk.text for chunk in streamed) == answer.text


def test_audio_parts_of_openai_reach_the_processor_in_the_form_of_transformers(monkeypatch: pytest.MonkeyPatch):
    """transformers' `load_audio` takes base64; the packages that decode it are optional."""
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=16_000, hop_length=800, chunk_length=1, n_fft=400)
    template = (
        f"{{% for part in messages[0].content %}}{{% if part.type == 'audio' %}}<{IMAGE}>{{% else %}}"
        "{{ part.text }}{% endif %}{% endfor %}"
    )
    processor = Qwen2AudioProcessor(extractor, letters(), chat_template=template, audio_token=f"<{IMAGE}>")
    sound = np.random.default_rng(1).standard_normal(12_000).astype(np.float32)
    encoded = base64.b64encode(sound.tobytes()).decode()

    def decoded(audio: Any, **_: Any) -> Any:
        return audio if isinstance(audio, np.ndarray) else np.frombuffer(base64.b64decode(audio), dtype=np.float32)

    monkeypatch.setattr(processing_utils, "load_audio", decoded)
    model = tiny_multimodal("qwen2_audio")
    lm = unspool.load(model, tokenizer=letters(), processor=processor)
    inputs = processor(text=f"<{IMAGE}>now?", audio=[sound], sampling_rate=16_000, return_tensors="pt")
    expected = model.generate(**inputs, do_sample=False, **LENGTHS)[0, inputs["input_ids"].shape[1] :].tolist()
    text = {"type": "text", "text": "now?"}
    for part in (
        {"type": "audio", "audio": sound},
        {"type": "input_audio", "input_audio": {"data": encoded, "format": "wav"}},
    ):
        answer = lm.chat([{"role": "user", "content": [part, text]}], **LENGTHS)
        assert tokens(answer) == expected
    for wrong in ({}, {"input_audio": encoded}, {"input_audio": {"data": ""}}):
        with pytest.raises(PromptError, match='a part of type "input_audio" must have'):
            lm.chat([{"role": "user", "content": [{"type": "input_audio", **wrong}, text]}])


def test_a_conversation_keeps_its_images():
    lm, one = loaded("llava"), picture("llava", 1)
    talk = unspool.Chat(lm, chat_template="of the processor", **LENGTHS)
    first = talk.say("who?", images=one)
    second = talk.say("why?")
    history = f"{MARK}who?/user/{first.text}/assistant/why?/user/a:"
    assert tokens(second) == theirs(lm, history, one)[0]
    assert talk.messages[0]["content"][0] == {"type": "image", "image": one}


def test_audio_through_a_processor_of_transformers():
    extractor = WhisperFeatureExtractor(feature_size=8, sampling_rate=16_000, hop_length=800, chunk_length=1, n_fft=400)
    processor = Qwen2AudioProcessor(extractor, letters(), audio_token=f"<{IMAGE}>")
    model = tiny_multimodal("qwen2_audio")
    lm = unspool.load(model, tokenizer=letters(), processor=processor)
    sound = np.random.default_rng(1).standard_normal(12_000).astype(np.float32)
    text = f"hear <{IMAGE}> now?"
    inputs = processor(text=text, audio=[sound], sampling_rate=16_000, return_tensors="pt")
    expected = model.generate(**inputs, do_sample=False, **LENGTHS)[0, inputs["input_ids"].shape[1] :].tolist()
    for audio in (sound, sound.tolist(), [{"array": sound, "sampling_rate": 16_000}]):
        assert tokens(lm.generate(text, audio=audio, **LENGTHS)) == expected
    with pytest.raises(PromptError, match="reads audio at 16000 Hz, got 8000 Hz"):
        lm.generate(text, audio={"array": sound, "sampling_rate": 8_000})


@pytest.mark.parametrize(
    ("prompt", "images", "error", "words"),
    [
        ([5, 6, 7], 1, PromptError, "must be a text"),
        ("no placeholder", 1, PromptError, "the processor cannot read the prompt: 0 placeholders and 1 images"),
        ([f"{MARK}", f"{MARK}"], 1, OptionError, "a list with one entry for each of the 2 prompts"),
        ([f"{MARK}", f"{MARK}"], [1], OptionError, "a list with one entry for each of the 2 prompts"),
    ],
)
def test_wrong_prompts_are_refused(prompt: Any, images: Any, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        loaded("llava").generate(prompt, images=images)


def test_models_that_read_no_images_say_so():
    with pytest.raises(OptionError, match=r"`images` needs the processor of .*give `processor=` to load"):
        unspool.load(tiny_multimodal("llava")).generate("a", images=picture("llava", 1))
    with pytest.raises(OptionError, match="its prompt is the input of its encoder"):
        unspool.load(tiny_seq2seq("t5"), tokenizer=letters()).generate("a", images=picture("llava", 1))
    with pytest.raises(OptionError, match="`images` is not read by"):
        unspool.load(tiny_model("openai"), tokenizer=letters()).generate("a", images=picture("llava", 1))

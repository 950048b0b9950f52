"""LanguageModel.transcribe against transformers' Whisper: texts, segments, times and the figures of windows."""

from __future__ import annotations

import copy
import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers

import unspool
from tests.parity.test_dropin_fuzz import quietly
from tests.parity.test_whisper import NO_TIMESTAMPS, PREVIOUS, features, speaker
from tests.tiny_seq2seq import NUM_FRAMES, NUM_MEL_BINS
from tests.toys import toy
from unspool.results.transcript import Transcript


class Words:
    """A tokenizer that writes each token as a number."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return "".join(f" {token}" for token in ids if token > 3)

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [int(word) for word in text.split()]}


@cache
def lm(seed: int) -> unspool.LanguageModel:
    return unspool.load(speaker(seed), tokenizer=Words())


def theirs(seed: int, audio: torch.Tensor, **options: Any) -> list[dict[str, Any]]:
    """Return transformers' segments."""
    model = copy.deepcopy(speaker(seed))
    found = quietly(model.generate, audio, return_segments=True, return_timestamps=True, **options)
    segments: list[dict[str, Any]] = found["segments"][0]
    return segments


OPTIONS: list[dict[str, Any]] = [
    {},
    {"language": "de", "task": "translate"},
    {"num_beams": 3},
    {"condition_on_prev_tokens": True, "prompt_ids": [PREVIOUS, 44, 45]},
    {"temperature": (0.0, 1e-6), "logprob_threshold": -1.5, "compression_ratio_threshold": 1.0},
    {"temperature": (0.0, 1e-6), "logprob_threshold": -1.0, "no_speech_threshold": 0.0},
    {"return_token_timestamps": True},
    {"repetition_penalty": 1.5},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("frames", [NUM_FRAMES, 110])
def test_segments_are_those_of_transformers(options: dict[str, Any], frames: int) -> None:
    audio = features(frames, frames)["input_features"]
    given = {"max_new_tokens": 10, **options}
    found = lm(2).transcribe(audio[0], **given)
    extra = {"prompt_ids": torch.tensor(given["prompt_ids"])} if "prompt_ids" in given else {}
    mask = {"attention_mask": torch.ones(1, frames, dtype=torch.int64)}
    expected = theirs(2, audio, **{**given, **extra, **mask})
    assert isinstance(found, Transcript) and len(found.segments) == len(expected)
    for ours, other in zip(found.segments, expected, strict=True):
        assert ours.token_ids == tuple(other["tokens"].tolist())
        assert (ours.start, ours.end) == (other["start"].item(), other["end"].item())
        assert ours.text == "".join(f" {token}" for token in ours.token_ids if token < NO_TIMESTAMPS)
        if options.get("return_token_timestamps"):
            assert ours.token_times == pytest.approx(other["token_timestamps"].tolist())
    assert found.text == str(found) == "".join(segment.text for segment in found.segments)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}, {"temperature": 1e-6}, {"temperature": 0.7, "seed": 4}])
def test_figures_of_a_window_are_computed_as_in_transformers(options: dict[str, Any]) -> None:
    audio, model = features(5, NUM_FRAMES)["input_features"], speaker(2)
    found = lm(2).transcribe(audio[0], max_new_tokens=8, language="en", **options)
    given = {"return_dict_in_generate": True, "output_scores": True, "top_k": 0}
    if options.get("temperature") == 0.7:
        segment = found.segments[0]  # drawn with other noise than transformers'
        assert math.isfinite(segment.mean_logprob) and segment.mean_logprob < 0 and segment.temperature == 0.7
        return
    result = theirs(2, audio, max_new_tokens=8, language="en", **options, **given)[0]["result"]
    tokens = result["sequences"][3:]
    kept = tokens[: len(tokens) - int((tokens == model.generation_config.pad_token_id).sum())]
    wanted = model._retrieve_avg_logprobs(result["scores"], kept, options.get("temperature", 0.0))
    assert found.segments[0].mean_logprob == pytest.approx(float(wanted), abs=1e-4)
    with torch.no_grad():
        logits = model(audio, decoder_input_ids=torch.tensor([[3, 20, 30]])).logits[0, 0]
    assert found.segments[0].no_speech_prob == pytest.approx(float(logits.softmax(-1)[NO_TIMESTAMPS - 1]), abs=1e-5)


def test_several_audios_are_transcribed_together() -> None:
    audios = [features(seed, length)["input_features"][0] for seed, length in enumerate((90, 40, 32, 60) * 3)]
    together = lm(2).transcribe(audios, max_new_tokens=6, language=["de", "en", "fr", "de"] * 3)
    alone = [
        lm(2).transcribe(audio, max_new_tokens=6, language=language)
        for audio, language in zip(audios, ["de", "en", "fr", "de"] * 3, strict=True)
    ]
    assert [each.to_dict()["text"] for each in together] == [each.text for each in alone]
    assert [each.language for each in together] == ["de", "en", "fr", "de"] * 3


def test_samples_of_any_length_are_read() -> None:
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=NUM_MEL_BINS, hop_length=400, chunk_length=1, n_fft=400, sampling_rate=12_800
    )
    assert extractor.nb_max_frames == NUM_FRAMES
    model = unspool.load(speaker(2), processor=extractor)
    samples = np.random.default_rng(0).normal(size=40_000).astype(np.float32) / 10
    long = extractor(samples, sampling_rate=12_800, truncation=False, padding="longest", return_tensors="pt")
    expected = theirs(2, long["input_features"], max_new_tokens=6)
    object.__setattr__(model.runtime.source, "sampling_rate", 12_800)
    found = model.transcribe(samples, max_new_tokens=6)
    assert [each.token_ids for each in found.segments] == [tuple(each["tokens"].tolist()) for each in expected]
    assert found.text == "", "no tokenizer"


def test_a_transcript_has_a_json_form() -> None:
    found = lm(2).transcribe(features(1, 70)["input_features"][0], max_new_tokens=6, return_token_timestamps=True)
    read = json.loads(found.to_json())
    assert read["language"] in ("en", "de", "fr") and read["text"] == found.text
    assert read["segments"][0]["token_ids"] == list(found.segments[0].token_ids)
    assert len(read["segments"][0]["token_times"]) == len(found.segments[0].token_ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 2}, "`num_return_sequences` must be 1"),
        ({"language": ["de", "en"]}, "one for each of the 1 audios"),
        ({"language": "xx"}, "must be a language of the model"),
        ({"temperature": "hot"}, "`temperature` must be a number"),
        ({"early_stopping": True}, "`early_stopping`"),
        ({"nonsense": 5}, "`nonsense`"),
        ({"seed": [1]}, "`seed`"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(unspool.OptionError, match=message):
        lm(2).transcribe(features(1, 40)["input_features"][0], **options)


def test_wrong_audio_and_other_models_are_refused() -> None:
    with pytest.raises(unspool.PromptError, match="must have the shape"):
        lm(2).transcribe(torch.zeros(3, 40))
    with pytest.raises(unspool.ModelError, match="does not transcribe audio"):
        unspool.LanguageModel(toy()).transcribe([0.5, 0.5])

"""What people give a model to read, and what is said where it cannot be read."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.tiny_seq2seq import IMAGE_SIZE, NUM_FRAMES, NUM_MEL_BINS, random_source, tiny_seq2seq
from unspool.errors import PromptError
from unspool.inputs.sources import decoder_prompt, read_source, source_rows
from unspool.runtimes.seq2seq.source_info import source_info
from unspool.source_info import SourceInfo
from unspool.types import Source


@cache
def info_of(family: str) -> SourceInfo:
    return source_info(tiny_seq2seq(family))


def words(text: str) -> dict[str, list[int]]:
    """A tokenizer: a word a token, 2 behind the last."""
    return {"input_ids": [*(10 + len(word) for word in text.split()), 2]}


@cache
def ears() -> Any:
    """A feature extractor whose window lasts as long as the tiny model's frames: 0.32 s."""
    return transformers.WhisperFeatureExtractor(feature_size=NUM_MEL_BINS, hop_length=160, chunk_length=1, n_fft=400)


def eyes(picture: Any, return_tensors: str) -> dict[str, torch.Tensor]:
    """An image processor: colors in [0, 1], the upper left corner alone."""
    if not isinstance(picture, np.ndarray):
        raise ValueError("no picture")
    assert return_tensors == "pt"
    corner = torch.from_numpy(picture[:IMAGE_SIZE, :IMAGE_SIZE]).permute(2, 0, 1).float() / 255
    return {"pixel_values": corner[None]}


def ids_of(source: Source) -> list[int]:
    assert source.inputs["input_ids"].tolist() == [list(source.token_ids)]
    assert set(source.inputs) == {"input_ids"}
    return list(source.token_ids)


@pytest.mark.parametrize(
    "given",
    [
        [13, 15, 2],
        (13, 15, 2),
        [[13, 15, 2]],
        torch.tensor([13, 15, 2]),
        np.array([[13, 15, 2]]),
        "one three"[:3] + " seven",
        {"input_ids": torch.tensor([[13, 15, 2]])},
        {"input_ids": torch.tensor([[13, 15, 2, 0, 0]]), "attention_mask": torch.tensor([[1, 1, 1, 0, 0]])},
    ],
)
def test_a_text_may_come_in_many_ways(given: Any) -> None:
    assert ids_of(read_source(given, info_of("bart"), tokenizer=words)) == [13, 15, 2]


def test_what_is_a_source_already_stays_the_same_object() -> None:
    source = random_source("t5")
    assert read_source(source, info_of("t5")) is source


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("a text", "a text source needs a tokenizer; give `tokenizer=` to load\\(\\), or give token ids"),
        ([], "the source holds no token"),
        ([5, -1], "the source holds the token id -1"),
        ([5] * 49, "the source has 49 tokens and Bart.* reads at most 48; shorten it"),
        ([1.5], "reads a text, or the token ids of one, got list"),
        ([[1, 2], [3]], "reads a text, or the token ids of one"),
        ({"input_ids": torch.ones(2, 3, dtype=torch.int64)}, "`input_ids` must hold one source, got 2"),
        ({"input_ids": torch.tensor([[5]]), "attention_mask": torch.tensor([[0]])}, "the source holds no token"),
        (
            {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1]])},
            "`attention_mask` \\(1, 1\\) and ids \\(1, 2\\) must have one shape",
        ),
    ],
)
def test_texts_that_cannot_be_read_are_refused(given: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_source(given, info_of("bart"))


def test_a_model_without_a_bound_reads_long_texts() -> None:
    assert len(read_source([5] * 4000, info_of("t5")).token_ids) == 4000


def test_rows_of_a_batch_lose_their_pads_on_either_side() -> None:
    ids = torch.tensor([[5, 6, 7, 0], [0, 8, 9, 2], [4, 4, 4, 4]])
    mask = torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]])
    rows = source_rows({"input_ids": ids, "attention_mask": mask}, info_of("t5"))
    assert [ids_of(row) for row in rows] == [[5, 6, 7], [8, 9, 2], [4, 4, 4, 4]]
    assert [
        ids_of(row) for row in source_rows({"input_ids": ids, "attention_mask": None}, info_of("t5"))
    ] == ids.tolist()
    features = torch.randn(2, NUM_MEL_BINS, NUM_FRAMES)
    heard = source_rows({"input_features": features}, info_of("whisper"))
    assert torch.equal(torch.cat([row.inputs["input_features"] for row in heard]), features)
    with pytest.raises(PromptError, match="reads `input_features`, got input_ids"):
        source_rows({"input_ids": ids}, info_of("whisper"))
    with pytest.raises(
        PromptError, match="must have as many rows each: `input_ids` \\(3, 4\\), `attention_mask` \\(2, 4\\)"
    ):
        source_rows({"input_ids": ids, "attention_mask": mask[:2]}, info_of("t5"))


# --- audio ----------------------------------------------------------------------------------------------------------

HEARING = SourceInfo(
    model="ears", kind="audio", input_name="input_features", shape=(NUM_MEL_BINS, 100), sampling_rate=16_000
)


@pytest.mark.parametrize("as_given", [lambda s: s, torch.from_numpy, np.ndarray.tolist, np.ndarray.astype])
def test_samples_become_the_extractors_own_features(as_given: Any) -> None:
    samples = np.random.default_rng(0).uniform(-1, 1, 9000).astype(np.float32)
    given = samples.astype(np.float64) if as_given is np.ndarray.astype else as_given(samples)
    expected = ears()(samples, sampling_rate=16_000, return_tensors="pt").input_features
    for source in (
        read_source(given, HEARING, processor=ears(), sampling_rate=16_000),
        read_source({"array": given, "sampling_rate": 16_000}, HEARING, processor=ears()),
        read_source(expected, HEARING),
        read_source(expected[0], HEARING),
    ):
        torch.testing.assert_close(source.inputs["input_features"], expected)
        assert source.token_ids == ()


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (np.zeros(9000, np.float32), {}, "audio samples need a feature extractor; give the model's processor"),
        (np.zeros(0, np.float32), {"processor": ears}, "the audio holds no sample"),
        (
            np.zeros(9, np.int16),
            {"processor": ears},
            "must be floats in \\[-1, 1\\], got int16; divide 16-bit samples by",
        ),
        (
            np.zeros(9000, np.float32),
            {"processor": ears, "sampling_rate": 44_100},
            "ears reads audio at 16000 Hz, got 44100 Hz; resample it",
        ),
        (
            np.zeros(24_000, np.float32),
            {"processor": ears},
            "has 150 frames, more than the 100 of ears; use LanguageModel.transcribe",
        ),
        (
            torch.zeros(NUM_MEL_BINS, 101),
            {},
            "has 101 frames, more than the 100 of ears; use LanguageModel.transcribe",
        ),
        (torch.zeros(NUM_MEL_BINS, 99), {}, "has 99 frames, fewer than the 100 of ears; pad them"),
        (torch.zeros(3, 100), {}, "must have the shape \\(8, 100\\) for ears, got \\(3, 100\\)"),
        (torch.zeros(2, NUM_MEL_BINS, 100), {}, "must be one row of \\(8, 100\\) floats, got Tensor of shape"),
        ("hello", {"processor": ears}, "ears reads samples or features of audio, got str"),
    ],
)
def test_audio_that_cannot_be_heard_is_refused(given: Any, options: dict[str, Any], message: str) -> None:
    options = {name: value() if callable(value) else value for name, value in options.items()}
    with pytest.raises(PromptError, match=message):
        read_source(given, HEARING, **options)


def test_whispers_window_is_read_off_the_model() -> None:
    info = info_of("whisper")
    assert info.kind == "audio" and info.shape == (NUM_MEL_BINS, NUM_FRAMES) and info.sampling_rate == 16_000


# --- images ---------------------------------------------------------------------------------------------------------


def test_pictures_become_the_image_processors_pixels() -> None:
    picture = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    expected = eyes(picture, return_tensors="pt")["pixel_values"]
    both = SimpleNamespace(image_processor=eyes, tokenizer=words)
    for given, processor in ((picture, eyes), (picture, both), (expected, None), (expected[0], None)):
        source = read_source(given, info_of("vit-bert"), processor=processor)
        torch.testing.assert_close(source.inputs["pixel_values"], expected)


@pytest.mark.parametrize(
    ("given", "processor", "message"),
    [
        (np.zeros((20, 30, 3), np.uint8), None, "an image needs an image processor; give the model's processor"),
        (torch.zeros(3, 8, 8), None, "must have the shape \\(3, 16, 16\\)"),
        (torch.zeros(16, 16), None, "must be one row of \\(3, 16, 16\\) floats"),
        ("nowhere", eyes, "the image processor cannot read str: no picture"),
    ],
)
def test_images_that_cannot_be_seen_are_refused(given: Any, processor: Any, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        read_source(given, info_of("git"), processor=processor)


# --- how the output begins ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "given", "expected"),
    [
        ("bart", None, (3,)),
        ("bart", (3, 9), (3, 9)),
        ("bart", [8, 9], (3, 8, 9)),
        ("t5", None, (0,)),
        ("whisper", (8, 9), (8, 9)),
        ("git", None, (1,)),
        ("git", (8,), (8,)),
        ("vit-gpt2", (8,), (3, 8)),
    ],
)
def test_the_decoder_begins_with_its_start_token(family: str, given: Any, expected: tuple[int, ...]) -> None:
    assert decoder_prompt(info_of(family), given) == expected


def test_a_model_that_does_not_say_how_it_begins_needs_to_be_told() -> None:
    info = SourceInfo(model="mute", kind="text", input_name="input_ids")
    assert decoder_prompt(info, [4]) == (4,)
    with pytest.raises(PromptError, match="mute has no decoder start token; give `decoder_input_ids`"):
        decoder_prompt(info)

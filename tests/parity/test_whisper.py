"""Whisper window by window: random calls of the drop-in return what transformers returns, segments and times too."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from transformers import PreTrainedModel

import unspool
from tests.interop.test_own_forward import FIELDS, assert_equal, parts
from tests.parity.test_dropin_fuzz import quietly
from tests.sampling import sampled
from tests.tiny_models import CACHE
from tests.tiny_seq2seq import NUM_FRAMES, NUM_MEL_BINS, tiny_seq2seq

LANGUAGES = {"<|en|>": 20, "<|de|>": 21, "<|fr|>": 22}
TASKS = {"transcribe": 30, "translate": 31}
NO_TIMESTAMPS, PREVIOUS, EOS, PAD = 70, 33, 2, 1  # transformers' beams take a pad of 0 for none
NUMBERS = range(400)


@cache
def speaker(seed: int) -> PreTrainedModel:
    """Return a tiny Whisper with the stored config of a released one.

    Wider embeddings of its end and timestamp tokens make outputs end, and have several segments.
    """
    model = tiny_seq2seq("whisper", seed=seed)
    with torch.no_grad():
        # Noise in the positions and the first features makes outputs vary from token to token.
        model.model.decoder.embed_positions.weight.mul_(3.0)
    config = model.generation_config
    config.lang_to_id, config.task_to_id, config.is_multilingual = LANGUAGES, TASKS, True
    config.no_timestamps_token_id, config.prev_sot_token_id = NO_TIMESTAMPS, PREVIOUS
    config.max_initial_timestamp_index, config.alignment_heads = 6, [[0, 1], [1, 2]]
    config.suppress_tokens = [0, PAD, 3, *LANGUAGES.values(), *TASKS.values(), PREVIOUS, NO_TIMESTAMPS - 1]
    config.eos_token_id, config.pad_token_id = EOS, PAD
    return model


def features(seed: int, *lengths: int) -> dict[str, torch.Tensor]:
    """Return audio of these lengths in one batch, in frames, with its mask."""
    generator, longest = torch.Generator().manual_seed(seed), max(lengths)
    noise = torch.randn(len(lengths), NUM_MEL_BINS, longest, generator=generator)
    mask = torch.tensor([[1] * length + [0] * (longest - length) for length in lengths])
    return {"input_features": noise * mask[:, None], "attention_mask": mask}


class Call(NamedTuple):
    """A call of both sides."""

    model: int
    inputs: dict[str, torch.Tensor]
    options: dict[str, Any]


def draw_call(number: int) -> Call:
    rng = random.Random(number)
    is_long = rng.random() < 0.7
    lengths = [rng.randint(NUM_FRAMES + 1, 4 * NUM_FRAMES)] if is_long else [NUM_FRAMES]
    inputs = features(number, *lengths)
    options: dict[str, Any] = {"return_timestamps": is_long or rng.random() < 0.7}
    options["max_new_tokens"] = rng.randint(4, 16)
    several: list[dict[str, Any]] = [
        {"language": rng.choice(["de", "french", "<|en|>"])},
        {"task": rng.choice(list(TASKS))},
        {"num_beams": rng.randint(2, 3)},
        {"condition_on_prev_tokens": True},
        {"prompt_ids": torch.tensor([PREVIOUS, *rng.sample(range(40, 60), k=rng.randint(1, 4))])},
        {"return_dict_in_generate": True, "output_scores": True},
        {"return_token_timestamps": True},
        {"compression_ratio_threshold": rng.choice([0.5, 0.9, 1.2]), "temperature": (0.0, 1e-6)},
        {"logprob_threshold": rng.choice([-0.5, -1.5, -3.0]), "temperature": (0.0, 1e-6)},
        {"logprob_threshold": -1.0, "no_speech_threshold": rng.choice([0.0, 1e-3]), "temperature": (0.0, 1e-6)},
        {"temperature": rng.choice([0.0, 1e-6])},
        {"repetition_penalty": 1.5},
        {"no_repeat_ngram_size": 2},
        {"begin_suppress_tokens": [EOS, 44]},
        {"max_length": rng.randint(5, 12), "max_new_tokens": None},
        {"force_unique_generate_call": True},
        {"return_segments": True},
        {"time_precision": 0.04},
    ]
    for chosen in rng.sample(several, k=rng.randint(1, 5)):
        options |= chosen
    if "condition_on_prev_tokens" in options and "prompt_ids" in options and rng.random() < 0.5:
        options["prompt_condition_type"] = "all-segments"
    if "no_speech_threshold" in options:
        options.pop("force_unique_generate_call", None)  # transformers fails if the only window is silent
    if options.get("temperature"):
        options["top_k"] = 0  # transformers' thresholds read the scores after top-k
    return Call(rng.randint(1, 4), inputs, options)


def tolerance(values: torch.Tensor) -> float:
    """Return the rounding to allow: a temperature of 1e-6 makes a million times of both scores and their rounding."""
    finite = values.double()[values.double().isfinite()]
    return max(1e-4, 4e-6 * float(finite.abs().max())) if finite.numel() else 1e-4


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """Yield the places where two results differ."""
    if isinstance(theirs, torch.Tensor):
        if ours.shape != theirs.shape or (ours.dtype != theirs.dtype and ours.numel()):
            yield f"{path}: {ours.dtype} {tuple(ours.shape)}, not {theirs.dtype} {tuple(theirs.shape)}"
        elif not torch.allclose(ours.double(), theirs.double(), rtol=1e-4, atol=tolerance(theirs), equal_nan=True):
            yield f"{path}: {ours}, not {theirs}"
    elif isinstance(theirs, dict):
        # Windows keep neither caches nor attention maps.
        names = {name for name in theirs if "attentions" not in name and name != CACHE}
        found = set(ours) - {CACHE}
        if found != names:
            yield f"{path}: {sorted(found)}, not {sorted(names)}"
        for name in names & found:
            yield from differences(ours[name], theirs[name], f"{path}.{name}")
    elif isinstance(theirs, list | tuple):
        if len(ours) != len(theirs):
            yield f"{path}: {len(ours)} entries, not {len(theirs)}"
        for index, pair in enumerate(zip(ours, theirs, strict=False)):
            yield from differences(*pair, f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path}: {ours}, not {theirs}"


def both(call: Call) -> tuple[Any, Any]:
    """Return (our result, transformers'). transformers changes the model's config, so it gets a copy."""
    model = speaker(call.model)
    expected = quietly(copy.deepcopy(model).generate, **call.inputs, **call.options)
    return quietly(unspool.generate, model, **call.inputs, **call.options), expected


@pytest.mark.parametrize("number", sampled(NUMBERS, 40))
def test_a_random_call_returns_what_transformers_returns(number: int) -> None:
    call = draw_call(number)
    ours, expected = both(call)
    assert not list(differences(ours, expected)), call


BATCHES: list[dict[str, Any]] = [
    {},
    {"num_beams": 2},
    {"return_segments": True, "language": ["de", "en", "fr"]},
    {"return_dict_in_generate": True, "return_timestamps": True},
    {"prompt_ids": torch.tensor([PREVIOUS, 44, 45])},
    {"return_token_timestamps": True},
]


@pytest.mark.parametrize("options", BATCHES, ids=str)
def test_a_batch_of_different_lengths_is_transcribed(options: dict[str, Any]) -> None:
    call = Call(2, features(7, 3 * NUM_FRAMES, 50, NUM_FRAMES), {"max_new_tokens": 10, **options})
    ours, expected = both(call)
    assert not list(differences(ours, expected))


def test_a_row_of_a_batch_equals_its_audio_alone() -> None:
    """Also with the text before and a retry, for which transformers' rows depend on each other."""
    lengths, model = (3 * NUM_FRAMES, 50, 2 * NUM_FRAMES), speaker(2)
    options = {"max_new_tokens": 10, "condition_on_prev_tokens": True, "return_segments": True}
    options |= {"logprob_threshold": -1.5, "temperature": (0.0, 0.6), "seed": 3}
    batch = features(7, *lengths)
    together = unspool.generate(model, **batch, **options)
    for row, length in enumerate(lengths):
        alone = unspool.generate(model, batch["input_features"][row : row + 1, :, :length], **options)
        found, wanted = together["segments"][row], alone["segments"][0]
        assert [each["tokens"].tolist() for each in found] == [each["tokens"].tolist() for each in wanted]
        assert [each["end"].item() for each in found] == [each["end"].item() for each in wanted]


def test_the_encoder_reads_each_window_once() -> None:
    model = speaker(1)
    unspool.generate(model, **features(1, NUM_FRAMES), max_new_tokens=3)
    encoder = unspool.engines.driver_of(model).engine.runtime._model.module.get_encoder()
    calls: list[int] = []
    handle = encoder.register_forward_hook(lambda *_: calls.append(1))
    try:
        inputs, retries = features(2, 2 * NUM_FRAMES), {"temperature": (0.0, 0.5, 1.0), "logprob_threshold": 0.0}
        found = unspool.generate(model, **inputs, **retries, max_new_tokens=3, return_segments=True)
    finally:
        handle.remove()
    windows = {tuple(each["result"]["sequences"].tolist()) for each in found["segments"][0]}
    assert len(calls) == len(windows) == 2, "detecting the language and three attempts encode a window once"


def test_progress_is_reported_for_each_window() -> None:
    seen: list[list[list[int]]] = []
    call = Call(2, features(7, 90), {"max_new_tokens": 8})
    unspool.generate(speaker(2), **call.inputs, **call.options, monitor_progress=lambda p: seen.append(p.tolist()))
    theirs: list[list[list[int]]] = []
    quietly(
        copy.deepcopy(speaker(2)).generate,
        **call.inputs,
        **call.options,
        monitor_progress=lambda p: theirs.append(p.tolist()),
    )
    assert seen == theirs and len(seen) > 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({**features(1, 40), "return_timestamps": False}, "`return_timestamps` must be True for more than 32 frames"),
        ({"input_features": features(1, 40, 50)["input_features"]}, "need `attention_mask`"),
        ({**features(1, 32), "no_speech_threshold": 0.5}, "needs `logprob_threshold`"),
        ({**features(1, 32), "is_multilingual": False, "language": "de"}, "for a model of one language"),
        ({**features(1, 32), "num_segment_frames": 20, "strict": True}, "`num_segment_frames` is not read"),
        ({**features(1, 32), "num_frames": 20, "strict": True}, "`num_frames` is not read"),
        ({**features(1, 32), "return_segments": True, "count_pads": True}, "`count_pads` has no meaning for audio"),
    ],
)
def test_calls_that_do_not_fit_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(unspool.UnspoolError, match=message):
        unspool.generate(speaker(1), max_new_tokens=3, **given)


@pytest.mark.parametrize("length", [NUM_FRAMES, 3 * NUM_FRAMES])
def test_settings_that_transformers_ignores_are_ignored_with_a_warning(length: int) -> None:
    call = Call(1, features(7, length), {"max_new_tokens": 6, "return_segments": True, "num_segment_frames": 20})
    call.options.update(num_frames=torch.tensor([20]), return_token_timestamps=True)
    ours, expected = both(call)
    assert not list(differences(ours, expected))
    with pytest.warns(UserWarning, match="`num_segment_frames` is not read.*`num_frames` is not read"):
        unspool.generate(speaker(1), **call.inputs, **call.options)


STATES: dict[str, Any] = {
    "return_dict_in_generate": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "max_new_tokens": 6,
}


@cache
def eager_speaker() -> Any:
    """Return a model that computes attention weights."""
    model: Any = copy.deepcopy(speaker(1))
    model.set_attn_implementation("eager")
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"condition_on_prev_tokens": True}, {"temperature": (0.0, 1e-6), "logprob_threshold": -1.5, "top_k": 0}],
    ids=str,
)
def test_each_segment_has_the_states_of_its_window(options: dict[str, Any]) -> None:
    inputs = features(7, 3 * NUM_FRAMES)
    options = {**options, **STATES, "return_timestamps": True}
    expected = quietly(copy.deepcopy(eager_speaker()).generate, **inputs, **options)
    found = quietly(unspool.generate, eager_speaker(), **inputs, **options)
    assert found["sequences"].equal(expected["sequences"]) and len(found["segments"][0]) > 1
    for segment, other in zip(found["segments"][0], expected["segments"][0], strict=True):
        for name in ("encoder_attentions", "encoder_hidden_states", *FIELDS):
            if name in other["result"]:
                assert_equal(tuple(segment["result"][name]), tuple(other["result"][name]), name)
        assert len(segment["result"]["decoder_hidden_states"]) > 1 and "cross_attentions" in segment["result"]


@pytest.mark.parametrize("temperature", [(0.0,), (0.0, 1e-6)], ids=str)
def test_windows_that_are_returned_whole_have_their_states(temperature: tuple[float, ...]) -> None:
    inputs = features(7, NUM_FRAMES, NUM_FRAMES)
    options = {**STATES, "temperature": temperature, "min_new_tokens": 6}
    expected = quietly(copy.deepcopy(eager_speaker()).generate, **inputs, **options)
    found = quietly(unspool.generate, eager_speaker(), **inputs, **options)
    assert type(found) is type(expected) and found.sequences.equal(expected.sequences)
    for name in ("encoder_attentions", "encoder_hidden_states", *FIELDS):
        if expected.get(name) is not None:
            assert_equal(found[name], expected[name], name)
    assert expected.cross_attentions is not None


def test_the_states_of_beams_in_windows_are_those_of_the_output() -> None:
    """transformers returns those of the row that a beam has in the batch."""
    model, inputs = eager_speaker(), features(7, NUM_FRAMES)
    options = {**STATES, "return_timestamps": True, "num_beams": 3}
    window = quietly(unspool.generate, model, **inputs, **options)["segments"][0][0]["result"]
    read = window["sequences"][None, :-1]
    with torch.no_grad():
        whole = model(inputs["input_features"], decoder_input_ids=read, output_hidden_states=True)
    steps = [torch.cat(layers, dim=1) for layers in zip(*window["decoder_hidden_states"], strict=True)]
    assert_equal(tuple(steps), whole.decoder_hidden_states)


REPEATED: list[dict[str, Any]] = [
    {},
    {"return_dict_in_generate": True, "output_scores": True},
    {"return_dict_in_generate": True, "force_unique_generate_call": True, "language": ["de", "en"]},
    {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True},
    {"return_timestamps": True, "return_segments": True},
]


@pytest.mark.parametrize("options", REPEATED, ids=str)
def test_a_temperature_of_0_writes_equal_outputs(options: dict[str, Any]) -> None:
    model = copy.deepcopy(speaker(1))
    model.set_attn_implementation("eager")
    options = {**options, "temperature": 0.0, "do_sample": True, "num_return_sequences": 2, "max_new_tokens": 6}
    inputs = features(7, NUM_FRAMES, NUM_FRAMES)
    expected = quietly(copy.deepcopy(model).generate, **inputs, **options)
    found = quietly(unspool.generate, model, **inputs, **options)
    if "output_attentions" not in options:
        assert not list(differences(found, expected))
    rows = found if isinstance(found, torch.Tensor) else found["sequences"]
    assert len(rows) == 4 and rows[0].equal(rows[1]) and not rows[0].equal(rows[2])
    assert rows.equal(expected if isinstance(expected, torch.Tensor) else expected["sequences"])
    for name in ("encoder_attentions", "encoder_hidden_states", "decoder_attentions", "cross_attentions"):
        if isinstance(expected, dict) and expected.get(name) is not None:
            assert_equal(found[name], expected[name], name)


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 0.0, "do_sample": True}, {}], ids=str)
def test_a_window_that_is_returned_whole_has_states_and_a_cache(options: dict[str, Any]) -> None:
    model = copy.deepcopy(speaker(1))
    model.set_attn_implementation("eager")
    options |= {"return_dict_in_generate": True, "force_unique_generate_call": True, "max_new_tokens": 6}
    options |= {"output_attentions": True, "output_hidden_states": True}
    inputs = features(7, NUM_FRAMES, NUM_FRAMES)
    expected = quietly(copy.deepcopy(model).generate, **inputs, **options)
    found = quietly(unspool.generate, model, **inputs, **options)
    assert found.sequences.equal(expected.sequences)
    for name in ("encoder_attentions", "encoder_hidden_states", *FIELDS):
        if expected.get(name) is not None:
            assert_equal(found[name], expected[name], name)
    assert expected.decoder_attentions is not None and expected.past_key_values is not None
    assert_equal(tuple(parts(found.past_key_values)), tuple(parts(expected.past_key_values)))
    del options["output_attentions"], options["output_hidden_states"]
    plain = quietly(unspool.generate, model, **inputs, **options)
    assert plain.sequences.equal(expected.sequences)
    assert_equal(tuple(parts(plain.past_key_values)), tuple(parts(expected.past_key_values)))

"""Models that read a source, through the drop-in: the recorded runs of transformers, and random calls of its own."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import unspool
from tests.interop.test_streaming import Heard
from tests.oracle import is_close, oracle_model, seq2seq_cases
from tests.parity.test_dropin_fuzz import CLOSE, OBJECTS, PAD, draw_kind, draw_options, quietly, transitions
from tests.sampling import sampled
from tests.strategies.test_constraints import holds
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.tiny_seq2seq import random_source, tiny_seq2seq

# --- recorded runs --------------------------------------------------------------------------------------------------

EXACT = [case for case in seq2seq_cases() if case["strategy"] != "constrained_beam"]
CONSTRAINED = seq2seq_cases("constrained_beam")
BEAMS = ("beam", "group_beam", "constrained_beam")


def ours(case: dict[str, Any], **options: Any) -> Any:
    """Return what the drop-in returns of a recorded case."""
    given: dict[str, Any] = {"attention_mask": torch.tensor(case["attention_mask"]), **case["kwargs"], **options}
    if "decoder_input_ids" in case:
        given["decoder_input_ids"] = torch.tensor(case["decoder_input_ids"])
    if case["assistant"]:
        given["assistant_model"] = oracle_model(case["assistant"])
    return unspool.generate(oracle_model(case["model"]), torch.tensor(case["input_ids"]), do_sample=False, **given)


@pytest.mark.parametrize("case", EXACT, ids=lambda case: case["id"])
def test_the_recorded_sequences_and_scores_are_returned(case: dict[str, Any]) -> None:
    expected = case["expected"]
    steps = "transition_scores" in expected
    found = ours(case, return_dict_in_generate=True, output_scores=steps or None)
    # transformers' beams fill up with the ending token where the padding token is 0.
    rows = zip(found.sequences.tolist(), expected["completions"], strict=True)
    width = len(case.get("decoder_input_ids", [[0]])[0])
    assert all(row[width:][: len(output)] == output for row, output in rows)
    if case["strategy"] != "beam":
        assert found.sequences.tolist() == expected["sequences"]
    kinds = (
        transformers.generation.GenerateEncoderDecoderOutput,
        transformers.generation.GenerateBeamEncoderDecoderOutput,
    )
    assert type(found) is kinds[case["strategy"] in BEAMS]
    if "sequences_scores" in expected:
        scores = zip(found.sequences_scores.tolist(), expected["sequences_scores"], strict=True)
        assert all(is_close(one, other) for one, other in scores)
    if "beam_indices" in expected:
        assert found.beam_indices.tolist() == expected["beam_indices"]
    if steps:
        model = oracle_model(case["model"])
        rows = model.compute_transition_scores(found.sequences, found.scores, getattr(found, "beam_indices", None))
        for row, other in zip(rows.tolist(), expected["transition_scores"], strict=True):
            assert all(is_close(one, score) for one, score in zip(row, other, strict=False))


@pytest.mark.parametrize("case", CONSTRAINED, ids=lambda case: case["id"])
def test_constrained_outputs_hold_the_words_and_score_at_least_as_high(case: dict[str, Any]) -> None:
    words = [
        tuple(word) if isinstance(word[0], int) else tuple(tuple(one) for one in word)
        for word in case["kwargs"]["force_words_ids"]
    ]
    found, expected = ours(case, return_dict_in_generate=True), case["expected"]
    for row, score, recorded, least in zip(
        found.sequences.tolist(),
        found.sequences_scores.tolist(),
        expected["completions"],
        expected["sequences_scores"],
        strict=True,
    ):
        assert holds(row, words)
        if holds(recorded, words):
            assert score >= least - 1e-4 * max(1.0, abs(least))


# --- random calls ---------------------------------------------------------------------------------------------------

FAMILIES = ("t5", "bart", "whisper", "vit-gpt2", "git")
KINDS = ("greedy", "beam", "beam", "best token drawn", "lookup")
NUMBERS = range(300)
COUNT = 40


class Call(NamedTuple):
    """One call, drawn from a number: what both sides are given, but for objects, which each gets fresh."""

    family: str
    kind: str
    inputs: dict[str, torch.Tensor]
    options: dict[str, Any]
    objects: tuple[str, ...]


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_seq2seq(family, seed=5)


def draw_inputs(rng: random.Random, family: str, rows: int) -> dict[str, torch.Tensor]:
    """Return sources and now and then what outputs begin with.

    Texts are padded on either side, on the right alone where transformers counts positions from the left, pads too. GIT
    always has a prompt: the padding token is its first token.
    """
    seeds = [rng.randrange(1000) for _ in range(rows)]
    if family in ("t5", "bart"):
        texts = [random_source(family, seed, rng.randint(2, 9)).inputs["input_ids"][0].tolist() for seed in seeds]
        width, right = max(map(len, texts)), family == "bart" or rng.random() < 0.5
        padded = [(text, [PAD] * (width - len(text))) for text in texts]
        ids = torch.tensor([text + pads if right else pads + text for text, pads in padded])
        inputs = {"input_ids": ids, "attention_mask": (ids != PAD).long()}
    else:
        sources = [random_source(family, seed).inputs for seed in seeds]
        inputs = {name: torch.cat([source[name] for source in sources]) for name in sources[0]}
    if family == "git" or rng.random() < 0.4:
        name = "input_ids" if family == "git" else "decoder_input_ids"
        shape = (rows, rng.randint(1, 4))
        inputs[name] = torch.tensor([[rng.randrange(4, VOCAB_SIZE) for _ in range(shape[1])] for _ in range(shape[0])])
    return inputs


def draw_call(number: int) -> Call:
    """Return the call of this number, the same one in every run."""
    rng = random.Random(f"sources {number}")
    family, kind = rng.choice(FAMILIES), rng.choice(KINDS)
    rows = 1 if kind == "lookup" else rng.choice((1, 2, 3))
    inputs = draw_inputs(rng, family, rows)
    prompt = inputs.get("input_ids" if family == "git" else "decoder_input_ids")
    width = 1 if prompt is None else prompt.shape[1] + (family not in ("whisper", "git"))
    options = draw_kind(rng, kind)
    is_padded = family not in ("t5", "bart") or bool((inputs["attention_mask"] == 0).any())
    several = draw_options(rng, width, is_padded)
    if not is_padded:
        several["encoder_no_repeat_ngram_size"]["encoder_no_repeat_ngram_size"] = rng.randint(1, 2)
    several.setdefault("no_repeat_ngram_size", {"no_repeat_ngram_size": rng.randint(1, 4)})
    for name in rng.sample(sorted(several), k=rng.randint(0, 4)):
        options |= several[name]
    if isinstance(forced := options.get("forced_eos_token_id"), list):
        options["forced_eos_token_id"] = forced[0]
    if rng.random() < 0.5:
        options["max_new_tokens"] = rng.randint(12, 20)
    elif rng.random() < 0.6:
        options["max_length"] = rng.randint(width + 12, width + 20)
    if family == "whisper":
        options |= {
            "eos_token_id": options.get("eos_token_id", [2])[0]
        }  # of several, transformers leaves the end there
        if kind == "beam":
            options["num_return_sequences"] = 1  # transformers returns the best output so many times
        if kind == "best token drawn":
            # transformers' Whisper draws only where a temperature is given, and fails with several outputs.
            options |= {"num_return_sequences": 1, "temperature": 1e-4}
    objects = tuple(rng.sample(sorted(OBJECTS), k=rng.choice((0, 0, 1, 2)))) if kind != "lookup" else ()
    if "prefix" in objects and options.get("do_sample"):
        options["num_return_sequences"] = 1  # transformers counts outputs as prompts
    if kind == "beam" and rows > 1:
        objects = tuple(name for name in objects if name != "row zero")  # a search that is over goes on in transformers
    if "forced_bos_token_id" in options:
        objects = tuple(name for name in objects if name != "row zero")  # together they may forbid everything
    return Call(family, kind, inputs, options, objects)


def arguments(call: Call) -> dict[str, Any]:
    """Return the keyword arguments, fresh objects for each of the two calls."""
    found: dict[str, Any] = {"pad_token_id": PAD, **call.inputs, **call.options}
    for name in call.objects:
        argument, value = OBJECTS[name]()
        found[argument] = value if argument == "prefix_allowed_tokens_fn" else [*found.get(argument, []), value]
    return found


@pytest.mark.parametrize("number", sampled(NUMBERS, COUNT))
def test_a_random_call_returns_what_transformers_returns(number: int) -> None:
    call = draw_call(number)
    model = model_of(call.family)
    if call.family == "whisper":
        expected = quietly(model.generate, **arguments(call))
        assert unspool.generate(model, **arguments(call)).equal(expected), call
        return
    wanted = {"return_dict_in_generate": True, "output_scores": True}
    expected = quietly(model.generate, **arguments(call), **wanted)
    found = unspool.generate(model, **arguments(call), **wanted)
    assert found.sequences.equal(expected.sequences), call
    assert type(found) is type(expected)
    if call.kind == "beam":
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **CLOSE)
        assert found.beam_indices.equal(expected.beam_indices)
    for one, other in zip(transitions(model, found), transitions(model, expected), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


@pytest.mark.parametrize("number", sampled(NUMBERS, 20, seed=1))
def test_so_it_does_inside_model_generate(number: int) -> None:
    call = draw_call(number)
    if "prompt_lookup_num_tokens" in call.options:
        call = call._replace(options={**call.options, "prompt_lookup_num_tokens": None})
        call.options.pop("max_matching_ngram_size")
    model = model_of(call.family)
    expected = quietly(model.generate, **arguments(call))
    assert quietly(model.generate, **arguments(call), custom_generate=unspool.decoding_method).equal(expected), call


def test_the_drill_covers_what_it_is_for() -> None:
    calls = [draw_call(number) for number in sampled(NUMBERS, COUNT)]
    assert {call.family for call in calls} == set(FAMILIES) and {call.kind for call in calls} == set(KINDS)
    assert {name for call in calls for name in call.objects} == set(OBJECTS)
    assert len(set().union(*(call.options for call in calls))) >= 18
    assert any("decoder_input_ids" in call.inputs for call in calls)


# --- how outputs begin ----------------------------------------------------------------------------------------------

T5, BART, WHISPER = (model_of(family) for family in ("t5", "bart", "whisper"))
TEXT = torch.tensor([[11, 12, 13, 1], [14, 15, 16, 17]])
DEFAULT_DECODER_PROMPT: dict[str, Any] = {"max_new_tokens": 6, "pad_token_id": PAD}


@pytest.mark.parametrize(
    "beginning",
    [
        {},
        {"decoder_start_token_id": 7},
        {"decoder_start_token_id": [7, 8]},
        {"decoder_input_ids": torch.tensor([[5, 6], [7, 8]])},
        {"decoder_input_ids": torch.tensor([[3, 6], [3, 8]]), "decoder_attention_mask": torch.ones(2, 2).long()},
        {"decoder_input_ids": torch.tensor([[3, 6], [7, 8]])},
        {"forced_bos_token_id": 9, "max_new_tokens": None, "max_length": 5},
        {"forced_bos_token_id": 9, "decoder_input_ids": torch.tensor([[5], [7]]), "min_length": 7},
    ],
    ids=str,
)
def test_outputs_begin_as_in_transformers(beginning: dict[str, Any]) -> None:
    options = {**DEFAULT_DECODER_PROMPT, "attention_mask": (TEXT != PAD).long(), **beginning}
    assert unspool.generate(BART, TEXT, **options).equal(quietly(BART.generate, TEXT, **options))


def test_pads_without_a_mask_are_read_as_in_transformers() -> None:
    assert unspool.generate(T5, TEXT, **DEFAULT_DECODER_PROMPT).equal(T5.generate(TEXT, **DEFAULT_DECODER_PROMPT))
    assert unspool.generate(T5, inputs=TEXT, **DEFAULT_DECODER_PROMPT).equal(
        T5.generate(TEXT, **DEFAULT_DECODER_PROMPT)
    )


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=str)
def test_a_streamer_hears_the_decoders_beginning_then_its_tokens(options: dict[str, Any]) -> None:
    heard, prompt = Heard(), torch.tensor([[3, 5]])
    sequences = unspool.generate(
        BART, TEXT[1:], decoder_input_ids=prompt, streamer=heard, **DEFAULT_DECODER_PROMPT, **options
    )
    assert heard.values[0].equal(prompt) and heard.ends == 1
    assert torch.stack(heard.values[1:], 1).equal(sequences[:, 2:])
    if not options:
        theirs = Heard()
        BART.generate(TEXT[1:], decoder_input_ids=prompt, streamer=theirs, **DEFAULT_DECODER_PROMPT)
        assert [value.tolist() for value in heard.values] == [value.tolist() for value in theirs.values]


def test_an_image_is_given_first_and_a_caption_may_have_a_beginning() -> None:
    pixels, prompt = random_source("vit-gpt2").inputs["pixel_values"], torch.tensor([[3, 9]])
    model = model_of("vit-gpt2")
    assert unspool.generate(model, pixels, **DEFAULT_DECODER_PROMPT).equal(
        model.generate(pixels, **DEFAULT_DECODER_PROMPT)
    )
    found = unspool.generate(model, pixel_values=pixels, input_ids=prompt, **DEFAULT_DECODER_PROMPT)
    assert found.equal(model.generate(pixel_values=pixels, input_ids=prompt, **DEFAULT_DECODER_PROMPT))
    git = model_of("git")
    unprompted = {"pixel_values": pixels.repeat(2, 1, 1, 1), "max_new_tokens": 6}
    assert unspool.generate(git, **unprompted).equal(git.generate(**unprompted))


# --- transcripts ----------------------------------------------------------------------------------------------------

FEATURES = torch.cat([random_source("whisper", seed).inputs["input_features"] for seed in (1, 2)])


@cache
def speaker() -> PreTrainedModel:
    """A Whisper model of three languages, as a released one stores them."""
    model = tiny_seq2seq("whisper", seed=6)
    config = model.generation_config
    config.lang_to_id = {"<|en|>": 20, "<|de|>": 21, "<|fr|>": 22}
    config.task_to_id = {"transcribe": 30, "translate": 31}
    config.no_timestamps_token_id, config.is_multilingual = 90, True
    config.suppress_tokens = list(range(91, VOCAB_SIZE))
    return model


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"language": "de"},
        {"language": "german", "task": "translate"},
        {"language": ["fr", "en"]},
        {"task": "translate"},
        {"num_beams": 3},
        {"decoder_input_ids": torch.tensor([[3, 21, 30], [3, 22, 31]])},
        {"max_new_tokens": None, "max_length": 9, "language": "en"},
    ],
    ids=str,
)
@pytest.mark.parametrize("shaped", [False, True])
def test_a_transcript_is_transformers_transcript(options: dict[str, Any], shaped: bool) -> None:
    model, given = (
        speaker(),
        {**DEFAULT_DECODER_PROMPT, "eos_token_id": 40, "return_dict_in_generate": shaped, **options},
    )
    expected = quietly(model.generate, FEATURES, **given)
    found = unspool.generate(model, FEATURES, **given)
    assert (
        (found.sequences.equal(expected.sequences) and type(found) is type(expected))
        if shaped
        else found.equal(expected)
    )
    inside = quietly(model.generate, FEATURES, custom_generate=unspool.decoding_method, **given)
    assert inside.sequences.equal(expected.sequences) if shaped else inside.equal(expected)


def test_what_a_released_checkpoint_stores_is_read() -> None:
    model = copy.deepcopy(speaker())
    stored = {"max_length": 14, "begin_suppress_tokens": [5, 40], "alignment_heads": [[0, 1]], "prev_sot_token_id": 80}
    stored |= {
        "forced_decoder_ids": [[1, None], [2, 30]],
        "return_timestamps": False,
        "max_initial_timestamp_index": 50,
    }
    for name, value in {**stored, "eos_token_id": 40, "pad_token_id": 1}.items():
        setattr(model.generation_config, name, value)
    assert unspool.generate(model, FEATURES).equal(quietly(model.generate, FEATURES))
    model.generation_config.language = "fr"
    assert unspool.generate(model, FEATURES).equal(quietly(model.generate, FEATURES)), "changed between two calls"
    model.generation_config.return_timestamps, model.generation_config.no_timestamps_token_id = True, 60
    model.generation_config.suppress_tokens = None
    assert unspool.generate(model, FEATURES).equal(quietly(model.generate, FEATURES))
    expected = quietly(model.generate, FEATURES, return_timestamps=False)
    assert unspool.generate(model, FEATURES, return_timestamps=False).equal(expected)


@pytest.mark.parametrize("family", ["t5", "whisper"])
def test_a_draft_reads_the_source_too(family: str) -> None:
    model, draft = model_of(family), tiny_seq2seq(family, seed=5)
    with torch.no_grad():
        for parameter in draft.parameters():
            parameter.mul_(1.01)
    source = torch.cat(list(random_source(family, 3).inputs.values()))
    for options in ({}, {"num_assistant_tokens": 3}):
        found = unspool.generate(model, source, assistant_model=draft, **DEFAULT_DECODER_PROMPT, **options)
        assert found.equal(quietly(model.generate, source, **DEFAULT_DECODER_PROMPT))


def test_guidance_moves_away_from_another_source() -> None:
    """transformers cannot: it asks the encoder-decoder without its encoder."""
    away = torch.tensor([[20, 21, 1], [22, 23, 24]])
    found = unspool.generate(
        T5,
        TEXT,
        guidance_scale=1.5,
        negative_prompt_ids=away,
        negative_prompt_attention_mask=away != PAD,
        **DEFAULT_DECODER_PROMPT,
    )
    lm = unspool.load(T5)
    for source, other, row in zip(TEXT.tolist(), ([20, 21], [22, 23, 24]), found.tolist(), strict=True):
        native = lm.generate(source, negative_prompt=other, guidance_scale=1.5, max_new_tokens=6)
        tokens = [*native.completions[0].token_ids]
        assert row[1:] == tokens + [PAD] * (6 - len(tokens))
    assert not found.equal(unspool.generate(T5, TEXT, **DEFAULT_DECODER_PROMPT))


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=str)
def test_inside_model_generate_long_audio_is_transcribed_window_by_window(options: dict[str, Any]) -> None:
    model = copy.deepcopy(speaker())
    model.generation_config.no_timestamps_token_id, model.generation_config.suppress_tokens = 60, None
    model.generation_config.max_initial_timestamp_index = 5
    long = torch.cat([FEATURES, FEATURES.flip(0)], dim=2)[:1]
    given = {**DEFAULT_DECODER_PROMPT, "eos_token_id": 40, "language": "de", "return_timestamps": True, **options}
    expected = quietly(model.generate, long, **given)
    assert quietly(model.generate, long, custom_generate=unspool.decoding_method, **given).equal(expected)


def test_short_audio_is_filled_up_with_silence() -> None:
    short = FEATURES[..., :20]
    assert unspool.generate(WHISPER, short, **DEFAULT_DECODER_PROMPT).equal(
        quietly(WHISPER.generate, short, **DEFAULT_DECODER_PROMPT)
    )


@pytest.mark.parametrize(
    ("model", "given", "message"),
    [
        (T5, {"inputs": TEXT, "language": "de"}, "`language` is read by speech models"),
        (T5, {"inputs": TEXT, "pixel_values": FEATURES}, "`pixel_values` is not read by"),
        (T5, {"inputs": TEXT, "position_ids": TEXT}, "`position_ids` is not read by"),
        (T5, {"inputs": TEXT, "decoder_start_token_id": [1, 2, 3]}, "one for each of the 2 rows"),
        (T5, {"inputs": TEXT, "decoder_input_ids": TEXT[0]}, "`decoder_input_ids` must be token ids"),
        (T5, {"bos_token_id": None}, "needs `input_ids`"),
        (WHISPER, {"inputs": FEATURES, "input_features": FEATURES}, "another name for `input_features`"),
        (WHISPER, {"inputs": FEATURES, "return_timestamps": True}, "needs `no_timestamps_token_id`"),
        (WHISPER, {"inputs": FEATURES[:1].repeat(1, 1, 2)}, "needs `no_timestamps_token_id`"),
        (WHISPER, {"inputs": FEATURES.repeat(1, 2, 1)}, "must have the shape"),
        (WHISPER, {"inputs": FEATURES, "decoder_input_ids": TEXT, "task": "translate"}, "cannot be given together"),
        (speaker(), {"inputs": FEATURES, "language": "xx"}, "`language` must be a language of the model"),
        (speaker(), {"inputs": FEATURES, "language": ["de"]}, "one for each of the 2 rows"),
        (model_of("git"), {"pixel_values": FEATURES, "decoder_input_ids": TEXT}, "give the prompt as `input_ids`"),
        (tiny_model("gpt2"), {"inputs": TEXT, "decoder_input_ids": TEXT}, "belongs to encoder-decoder models"),
        (tiny_model("gpt2"), {"inputs": TEXT, "input_features": FEATURES}, "belongs to encoder-decoder models"),
        (tiny_model("gpt2"), {"inputs": TEXT, "decoder_start_token_id": 3}, "`decoder_start_token_id` is read by"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_by_name(model: Any, given: dict[str, Any], message: str) -> None:
    with pytest.raises(unspool.UnspoolError, match=message):
        unspool.generate(model, max_new_tokens=3, **given)


def test_another_speech_model_reads_whole_audios() -> None:
    config = transformers.Speech2TextConfig(
        vocab_size=VOCAB_SIZE, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, input_feat_per_channel=8, conv_channels=16,
        max_source_positions=100, max_target_positions=48,
    )  # fmt: skip
    model = transformers.Speech2TextForConditionalGeneration(config).eval()
    audio = torch.randn(2, 60, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 60, dtype=torch.int64)
    found = unspool.generate(model, audio, attention_mask=mask, max_new_tokens=5)
    assert found.equal(quietly(model.generate, audio, attention_mask=mask, max_new_tokens=5))
    mask[1, 40:] = 0
    with pytest.raises(unspool.OptionError, match="`attention_mask` must be all ones"):
        unspool.generate(model, audio, attention_mask=mask, max_new_tokens=5)

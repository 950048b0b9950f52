"""model.generate(..., custom_generate=unspool.decoding_method): transformers prepares, our engine decodes."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import pytest
import torch
import transformers
from transformers.modeling_outputs import BaseModelOutput

import unspool
from tests.interop.test_transformers_objects import ENDS, Spy, Watch
from tests.text.tokenizers import byte_level
from tests.tiny_models import CACHE, tiny_model
from tests.tiny_seq2seq import FAMILIES, TEXT, random_source, tiny_seq2seq
from unspool.engines import driver_of
from unspool.errors import OptionError

MODEL = tiny_model("llama", seed=5)
PADDED = torch.tensor([[0, 0, 0, 11, 12], [13, 14, 15, 16, 17], [0, 18, 19, 20, 21]])
MASK = (PADDED != 0).long()
DEFAULT_DECODER_PROMPT: dict[str, Any] = {"max_new_tokens": 10, "pad_token_id": 1, "eos_token_id": ENDS}


def through(*args: Any, **options: Any) -> Any:
    """Return what transformers returns with our engine inside, without its remarks on options it has dropped."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MODEL.generate(*args, custom_generate=unspool.decoding_method, **options)


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(found, torch.Tensor):
        assert found.equal(expected)
        return
    assert type(found) is type(expected) and found.sequences.equal(expected.sequences)
    for name in ("scores", "logits"):
        for one, other in zip(getattr(found, name) or (), getattr(expected, name) or (), strict=True):
            allowed = one.isfinite().all(1)  # rows that have ended hold nothing but their pad
            torch.testing.assert_close(one[allowed], other[allowed], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_new_tokens": None, "max_length": 12, "min_length": 11},
        {"min_new_tokens": 6, "repetition_penalty": 1.4, "bad_words_ids": [[40], [41, 42]], "suppress_tokens": [50]},
        {"forced_eos_token_id": 33, "exponential_decay_length_penalty": (2, 1.3), "remove_invalid_values": True},
        {"do_sample": True, "top_k": 1, "temperature": 0.7, "num_return_sequences": 2},
        {"do_sample": True, "top_p": 1e-6, "min_p": 0.2, "typical_p": 0.9, "renormalize_logits": True, "top_k": 0},
        {"num_beams": 3, "num_return_sequences": 2, "early_stopping": True, "length_penalty": 0.3},
        {"num_beams": 4, "repetition_penalty": 1.4, "min_new_tokens": 5},
        {"guidance_scale": 2.0},
        {"guidance_scale": 2.0, "negative_prompt_ids": PADDED[:, 1:] + 1},
        {"guidance_scale": 2.0, "negative_prompt_ids": PADDED[1:2, 1:], "num_beams": 1},
        {"watermarking_config": {"bias": 2.5, "seeding_scheme": "selfhash"}},
        {"return_dict_in_generate": True, "output_scores": True, "output_logits": True},
        {"return_dict_in_generate": True, "output_scores": True, "num_beams": 3},
        {"use_cache": False},
    ],
    ids=str,
)
def test_the_tokens_are_those_of_transformers(options: dict[str, Any]):
    given: dict[str, Any] = {"attention_mask": MASK, **DEFAULT_DECODER_PROMPT, **options}
    if options.get("negative_prompt_ids") is not None and len(options["negative_prompt_ids"]) == 1:
        expected = MODEL.generate(
            PADDED, **given | {"negative_prompt_ids": options["negative_prompt_ids"].expand(3, -1)}
        )
    else:
        expected = MODEL.generate(PADDED, **given)
    assert_same(through(PADDED, **given), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"penalty_alpha": 0.6, "top_k": 4},
        {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5, "num_return_sequences": 2},
        {"num_beams": 3, "force_words_ids": [[61]]},
        {"prompt_lookup_num_tokens": 3},
        {"dola_layers": "low", "repetition_penalty": 1.2},
        {"do_sample": True, "seed": 3, "num_return_sequences": 2, "temperature": 1.3},
        {"do_sample": True, "seed": [3, 4, 5], "num_beams": 3},
        {"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 2, "do_sample": True, "seed": 1},
        {"do_sample": True, "best_of": 3, "seed": 2, "min_p": 0.05},
        {"dry_multiplier": 0.8, "dry_sequence_breakers": [5], "frequency_penalty": 0.4},
        {"num_beams": 3, "lookahead_steps": 2},
        {"ignore_eos": True, "batch_invariant": True},
    ],
    ids=str,
)
def test_strategies_and_options_that_transformers_has_not(options: dict[str, Any]):
    given: dict[str, Any] = {"attention_mask": MASK, **DEFAULT_DECODER_PROMPT, **options}
    assert through(PADDED, **given).equal(unspool.generate(MODEL, PADDED, **given))


@pytest.mark.parametrize("strategy", [{}, {"num_beams": 3}, {"do_sample": True, "top_k": 1}], ids=str)
def test_objects_of_the_caller_stay(strategy: dict[str, Any]):
    def allowed(batch_id: int, ids: torch.Tensor) -> list[int]:
        return [*range(3 + batch_id, 90, 2)]

    results = []
    for generate in (through, MODEL.generate):
        objects: dict[str, Any] = {
            "logits_processor": [Spy(), transformers.RepetitionPenaltyLogitsProcessor(1.5)],
            "stopping_criteria": [Watch(lambda tokens: tokens % 37 == 9)],
            "prefix_allowed_tokens_fn": allowed,
        }
        results.append(
            generate(
                PADDED, attention_mask=MASK, repetition_penalty=1.2, **DEFAULT_DECODER_PROMPT, **objects, **strategy
            )
        )
    assert results[0].equal(results[1])


def test_a_stored_config_asks_for_nothing():
    """A model whose author stored sampling options decodes greedily without complaint."""
    model = tiny_model("llama", seed=5)
    model.generation_config.update(temperature=0.6, top_p=0.9, top_k=1, do_sample=True)
    given: dict[str, Any] = {"custom_generate": unspool.decoding_method, "max_new_tokens": 6}
    for options in ({}, {"do_sample": False}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert model.generate(PADDED[1:2], **given, **options).equal(
                model.generate(PADDED[1:2], max_new_tokens=6, **options)
            )


def test_one_engine_serves_both_doors():
    model = tiny_model("gpt2")
    unspool.generate(model, PADDED[1:2], max_new_tokens=3)
    before = driver_of(model)
    model.generate(PADDED[1:2], max_new_tokens=3, custom_generate=unspool.decoding_method)
    assert driver_of(model) is before


def test_what_transformers_does_not_pass_on_can_be_bound():
    draft, tokenizer = tiny_model("llama", seed=6), byte_level()
    method = functools.partial(unspool.decoding_method, assistant_model=draft)
    assert MODEL.generate(PADDED[1:2], custom_generate=method, **DEFAULT_DECODER_PROMPT).equal(
        MODEL.generate(PADDED[1:2], **DEFAULT_DECODER_PROMPT)
    )
    model = tiny_model("llama", vocab_size=420, seed=5)
    method = functools.partial(unspool.decoding_method, tokenizer=tokenizer, dry_sequence_breakers=["\n"])
    given: dict[str, Any] = {"dry_multiplier": 0.9, "max_new_tokens": 12}
    found = model.generate(PADDED[1:2], custom_generate=method, **given)
    assert found.equal(unspool.generate(model, PADDED[1:2], tokenizer=tokenizer, dry_sequence_breakers=["\n"], **given))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"temperature": 0.7, "strict": True}, "temperature"),
        ({"output_attentions": True, "return_dict_in_generate": True, "guidance_scale": 2.0}, "guidance_scale"),
        ({"strategy": "greedyy"}, "strategy"),
    ],
    ids=str,
)
def test_nothing_asked_is_ignored(options: dict[str, Any], option: str):
    model = tiny_model("gpt2")
    with warnings.catch_warnings(), pytest.raises(OptionError) as caught:
        warnings.simplefilter("ignore")
        model.generate(PADDED, attention_mask=MASK, custom_generate=unspool.decoding_method, **options)
    assert caught.value.option == option


def test_a_cache_that_holds_the_whole_prompt_is_refused():
    cache = transformers.DynamicCache(config=MODEL.config)
    MODEL(PADDED[1:2], **{CACHE: cache})
    with pytest.raises(OptionError, match=CACHE):
        through(PADDED[1:2], **{CACHE: cache})


def test_an_encoder_decoder_writes_what_transformers_writes():
    model = tiny_seq2seq("t5")
    options = {"attention_mask": MASK, "max_new_tokens": 5}
    assert model.generate(PADDED, custom_generate=unspool.decoding_method, **options).equal(
        model.generate(PADDED, **options)
    )


@pytest.mark.parametrize("family", ["mamba", "mamba2", "jamba"])
def test_a_cache_of_recurrent_states_that_holds_nothing_is_no_obstacle(family):
    model, ids = tiny_model(family), torch.tensor([[5, 6, 7]])
    ours = model.generate(ids, max_new_tokens=5, do_sample=False, custom_generate=unspool.decoding_method)
    assert ours.tolist() == model.generate(ids, max_new_tokens=5, do_sample=False).tolist()


# --- what transformers has merged and computed ----------------------------------------------------------------------

STORED: dict[str, Any] = {
    "repetition_penalty": 1.8,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[40], [41, 42]],
    "suppress_tokens": [50, 51, 52],
    "begin_suppress_tokens": [60],
    "forced_eos_token_id": 33,
    "eos_token_id": ENDS,
    "sequence_bias": [[[70], 4.0]],
    "min_new_tokens": 6,
    "exponential_decay_length_penalty": (2, 1.3),
    "num_beams": 3,
    "length_penalty": 0.2,
    "early_stopping": True,
}


@pytest.mark.parametrize("off", [None, *STORED])
@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 1}], ids=str)
def test_an_option_that_the_caller_turns_off_stays_off(off: str | None, mode: dict[str, Any]) -> None:
    model = tiny_model("llama", seed=5)
    for name, value in STORED.items():
        if name != "num_beams" or off == "num_beams":
            setattr(model.generation_config, name, value)
    neutral = {"num_beams": 1, "length_penalty": 1.0, "early_stopping": False}
    options = {"max_new_tokens": 10, "pad_token_id": 1, "attention_mask": MASK, **mode}
    if off is not None and off not in mode:
        options[off] = neutral.get(off)
    if off == "eos_token_id":  # transformers fails on a decay without an end
        options["exponential_decay_length_penalty"] = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.generate(PADDED, **options)
        assert model.generate(PADDED, custom_generate=unspool.decoding_method, **options).equal(expected)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}], ids=str)
@pytest.mark.parametrize("off", ["forced_eos_token_id", "forced_bos_token_id", "eos_token_id"])
def test_an_encoder_decoder_writes_on_without_a_stored_option(off: str, mode: dict[str, Any]) -> None:
    model = tiny_seq2seq("bart")
    model.generation_config.update(forced_eos_token_id=9, forced_bos_token_id=8, eos_token_id=[9, 48])
    options = {"max_new_tokens": 6, off: None, **mode}
    expected = model.generate(PADDED, attention_mask=MASK, **options)
    assert model.generate(PADDED, attention_mask=MASK, custom_generate=unspool.decoding_method, **options).equal(
        expected
    )


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("start", ["ids", "none", "masked"])
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_callers_encoder_outputs_are_read(family: str, start: str, mode: dict[str, Any]) -> None:
    model = tiny_seq2seq(family)
    states = torch.randn(3, 4, model.config.d_model, generator=torch.Generator().manual_seed(1)) * 3
    ids = (torch.full((3, 1), model.config.decoder_start_token_id or 0),) if start == "ids" else ()
    mask = {"attention_mask": torch.tensor([[1, 1, 1, 0], [0, 1, 1, 1], [1, 1, 1, 1]])} if start == "masked" else {}
    results = []
    for custom in ({}, {"custom_generate": unspool.decoding_method}):
        encoded = BaseModelOutput(last_hidden_state=states.clone())
        results.append(model.generate(*ids, encoder_outputs=encoded, max_new_tokens=6, **mask, **mode, **custom))
    assert results[0].equal(results[1])
    plain = model.generate(PADDED, max_new_tokens=6, **mode)
    assert not results[1].equal(plain)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=str)
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in TEXT])
def test_sources_other_than_text_are_read_from_the_encoders_output(family: str, mode: dict[str, Any]) -> None:
    model, sources = tiny_seq2seq(family), [random_source(family, seed) for seed in (1, 2)]
    inputs = {name: torch.cat([each.inputs[name] for each in sources]) for name in sources[0].inputs}
    given = {**inputs, "max_new_tokens": 6, **mode}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.generate(**given)
        assert model.generate(**given, custom_generate=unspool.decoding_method).equal(expected)


def test_an_encoder_runs_once() -> None:
    model, calls = tiny_seq2seq("t5"), []
    unspool.generate(model, PADDED, max_new_tokens=2)  # trials are over
    hook = model.get_encoder().register_forward_hook(lambda *args: calls.append(1))
    try:
        model.generate(PADDED, attention_mask=MASK, max_new_tokens=3, custom_generate=unspool.decoding_method)
    finally:
        hook.remove()
    assert len(calls) == 1


@pytest.mark.parametrize("mode", [{}, {"num_beams": 2}, {"do_sample": True, "top_k": 1}], ids=str)
@pytest.mark.parametrize("count", [4, 6])
def test_a_minimum_gives_way_to_a_forced_end(count: int, mode: dict[str, Any]) -> None:
    model = tiny_seq2seq("bart")
    options = {"min_new_tokens": count, "max_new_tokens": count, "forced_eos_token_id": 9, "eos_token_id": 9, **mode}
    expected = model.generate(PADDED, attention_mask=MASK, **options)
    found = model.generate(PADDED, attention_mask=MASK, custom_generate=unspool.decoding_method, **options)
    assert found.equal(expected) and (found[:, -1] == 9).all()
    given = {**DEFAULT_DECODER_PROMPT, "attention_mask": MASK, **options}
    assert through(PADDED, **given).equal(MODEL.generate(PADDED, **given))

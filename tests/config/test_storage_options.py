"""Every option survives its file, given as a value and given as off."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from unspool.config import OPTIONS, PROCESSOR_ORDER, GenerationConfig, resolve

VALUES: dict[str, Any] = {
    "max_new_tokens": 60,
    "max_length": 200,
    "min_new_tokens": 3,
    "min_length": 5,
    "stop_strings": ("\n\n", "é", '"'),
    "max_time": 2.5,
    "ignore_eos": True,
    "do_sample": False,
    "strategy": "beam",
    "num_return_sequences": 3,
    "num_beams": 6,
    "length_penalty": -0.5,
    "early_stopping": "never",
    "lookahead_steps": 4,
    "num_beam_groups": 3,
    "diversity_penalty": 0.5,
    "force_words_ids": ((5, None, 6), ((7,), (8, None, None, 9))),
    "force_words": ("rain", ("sun", "Sonne")),
    "force_words_ordered": True,
    "penalty_alpha": 0.6,
    "dola_layers": (0, 2),
    "guidance_scale": 1.5,
    "negative_prompt": (5, 6),
    "best_of": 4,
    "best_of_by": "mbr",
    "temperature": 0.7,
    "top_k": 50,
    "top_p": 0.92,
    "min_p": 0.05,
    "top_h": 0.4,
    "typical_p": 0.95,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 2e-3,
    "top_n_sigma": 1.5,
    "xtc_probability": 0.5,
    "xtc_threshold": 0.2,
    "xtc_exclude": (13, 198),
    "repetition_penalty": 1.2,
    "presence_penalty": -0.5,
    "frequency_penalty": 0.25,
    "penalty_scope": "output",
    "penalty_exclude": (1,),
    "prompt_ignore_length": 2,
    "no_repeat_ngram_size": 3,
    "encoder_repetition_penalty": 0.9,
    "encoder_no_repeat_ngram_size": 4,
    "dry_multiplier": 0.8,
    "dry_base": 2.0,
    "dry_allowed_length": 3,
    "dry_sequence_breakers": ("\n", 5, (6, 7)),
    "dry_range": 512,
    "bad_words_ids": ((5,), (6, 7)),
    "sequence_bias": {(5, 7): -2.0, (9,): 1.5},
    "json_schema": {"type": "object", "properties": {"b": {"const": "é"}, "a": True}},
    "json_object": True,
    "regex": "[0-9]+\\n",
    "choice": ("yes", "ja, é"),
    "grammar": 'start: "a" | "b"',
    "suppress_tokens": (3, 4),
    "begin_suppress_tokens": (8,),
    "forced_bos_token_id": 12,
    "forced_eos_token_id": (2, 7),
    "exponential_decay_length_penalty": (5, 1.1),
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "eos_token_id": (2, 7),
    "bos_token_id": 1,
    "pad_token_id": 0,
    "logprobs": 5,
    "echo": True,
    "return_dict_in_generate": True,
    "output_scores": True,
    "output_logits": True,
    "output_attentions": True,
    "output_hidden_states": True,
    "seed_prompt_tokens": 3,
    "seed": (3, 2**63, -1),
    "batch_invariant": True,
    "processor_order": tuple(PROCESSOR_ORDER),
    "prompt_lookup_num_tokens": 3,
    "max_matching_ngram_size": 4,
    "num_assistant_tokens": 7,
    "num_assistant_tokens_schedule": "constant",
    "assistant_confidence_threshold": 0.25,
    "assistant_lookbehind": 6,
    "target_lookbehind": 8,
    "decoder_start_token_id": (0, 2),
}
"""A value of every option that is neither its default nor off."""


def saved(config: GenerationConfig, folder: Path) -> GenerationConfig:
    config.save_pretrained(folder, "one.json")
    return GenerationConfig.from_pretrained(folder, "one.json")


def test_the_table_has_every_option_and_nothing_at_rest() -> None:
    assert VALUES.keys() >= OPTIONS.keys(), "an option has no sample value"
    for name in OPTIONS:
        value = OPTIONS[name].check(VALUES[name])
        assert value != OPTIONS[name].default and (name == "do_sample" or not OPTIONS[name].is_off(value)), name


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_survives_its_file(name: str, tmp_path: Path) -> None:
    config = GenerationConfig(**{name: VALUES[name]})
    back = saved(config, tmp_path)
    assert back == config
    assert back.explicit == {name}
    assert type(getattr(back, name)) is type(getattr(config, name))


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_that_is_off_is_off_in_the_file_too(name: str, tmp_path: Path) -> None:
    config = GenerationConfig(**{name: None})
    back = saved(config, tmp_path)
    assert back.explicit == {name}
    assert OPTIONS[name].is_off(getattr(back, name))
    stored = GenerationConfig(**{name: VALUES[name]})
    assert getattr(resolve({}, back, stored), name) == getattr(resolve({}, config, stored), name)


def test_all_options_survive_one_file_together(tmp_path: Path) -> None:
    config = GenerationConfig(**{name: VALUES[name] for name in OPTIONS})
    assert saved(config, tmp_path) == config


def test_equal_configs_make_equal_files(tmp_path: Path) -> None:
    forwards = {name: VALUES[name] for name in OPTIONS}
    GenerationConfig(**forwards).save_pretrained(tmp_path, "a.json")
    GenerationConfig(**dict(reversed(forwards.items()))).save_pretrained(tmp_path, "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    json.loads((tmp_path / "a.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no NaN, no Infinity

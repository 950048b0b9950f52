"""Files of transformers 4 and 5 are read and decoded with; ours are read by transformers, and stay as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.text.tokenizers import byte_level
from tests.tiny_models import tiny_model
from unspool import LanguageModel
from unspool.config import GenerationConfig

STORED = Path(__file__).parent / "stored"
THEIRS = sorted(path.relative_to(STORED).as_posix() for path in STORED.glob("transformers-*/*.json"))
OURS = sorted(path.name for path in STORED.glob("unspool/*.json"))

TRANSLATION: dict[str, Any] = {
    "num_beams": 4,
    "early_stopping": True,
    "length_penalty": 0.6,
    "max_new_tokens": 12,
    "no_repeat_ngram_size": 3,
    "bad_words_ids": [[5], [6, 7]],
    "forced_eos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
STORY: dict[str, Any] = {
    "do_sample": True,
    "temperature": 0.7,
    "top_p": 0.92,
    "top_k": 0,
    "max_new_tokens": 10,
    "repetition_penalty": 1.2,
    "sequence_bias": {(5, 7): -2.0, (9,): 1.5},
    "exponential_decay_length_penalty": (5, 1.1),
    "suppress_tokens": [3],
    "stop_strings": ["\n\n", "é"],
}
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WRITTEN: dict[str, dict[str, Any]] = {
    "generation_config.json": {**SPECIAL, "eos_token_id": [2, 7]},
    "model.json": SPECIAL,
    "translation.json": TRANSLATION,
    "story.json": STORY,
    "bias.json": {"sequence_bias": {(5, 7): -2.0, (9,): 1.5}, "max_new_tokens": 8},
    "summary.json": {
        "num_beams": 6, "num_beam_groups": 3, "diversity_penalty": 0.5, "num_return_sequences": 2, "max_new_tokens": 8
    },
    "contrastive.json": {"penalty_alpha": 0.6, "top_k": 4, "max_new_tokens": 8},
    "forced.json": {"force_words_ids": [[5, 6], [[8], [9, 10]]], "num_beams": 4, "max_new_tokens": 8},
    "lookup.json": {"prompt_lookup_num_tokens": 3, "max_matching_ngram_size": 2, "max_new_tokens": 8},
}  # fmt: skip
"""What the transformers config was made of, file by file."""

AT_REST = {"transformers-5.23/model.json": {"output_attentions": False, "output_hidden_states": False}}
"""Options that transformers wrote into a file with their off values."""

STRATEGY = {
    "translation.json": "beam",
    "story.json": "sample",
    "summary.json": "diverse_beam",
    "contrastive.json": "contrastive",
    "forced.json": "constrained_beam",
    "lookup.json": "assisted",
}


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return unspool.load(tiny_model("llama", vocab_size=len(byte_level())), tokenizer=byte_level())


@pytest.mark.parametrize("name", THEIRS)
def test_a_file_of_transformers_says_what_it_was_made_of(name: str) -> None:
    folder, file = name.split("/")
    config = GenerationConfig.from_pretrained(STORED / folder, file)
    assert config == GenerationConfig(**WRITTEN[file], **AT_REST.get(name, {}))
    assert config.extras["transformers_version"].startswith(folder.removeprefix("transformers-"))


@pytest.mark.parametrize("name", THEIRS)
def test_a_file_of_transformers_is_decoded_with(name: str, lm: LanguageModel) -> None:
    folder, file = name.split("/")
    config = GenerationConfig.from_pretrained(STORED / folder, file)
    result = lm.generate([[5, 6, 7], [8, 9]], config=config, seed=1, max_new_tokens=8)
    assert {each.strategy for each in result} == {STRATEGY.get(file, "greedy")}
    options = {key: value for key, value in WRITTEN[file].items() if key != "max_new_tokens"}
    again = lm.generate([[5, 6, 7], [8, 9]], **options, seed=1, max_new_tokens=8)
    pairs = [
        pair
        for one, other in zip(result, again, strict=True)
        for pair in zip(one.completions, other.completions, strict=True)
    ]
    assert all(one.token_ids == other.token_ids for one, other in pairs)
    # The second call may find its rows in another order, which changes their rounding.
    assert all(one.logprobs == pytest.approx(other.logprobs, abs=1e-4) for one, other in pairs)


@pytest.mark.parametrize("name", OURS)
def test_transformers_reads_our_files_as_they_stand(name: str) -> None:
    stored = json.loads((STORED / "unspool" / name).read_text(encoding="utf-8"))
    theirs = transformers.GenerationConfig.from_pretrained(STORED / "unspool", name)
    assert {attribute: getattr(theirs, attribute) for attribute in stored} == stored


@pytest.mark.parametrize("name", OURS)
def test_our_files_are_written_the_same_today(name: str, tmp_path: Path) -> None:
    """What transformers 4.48.3 was seen to read is what we still write."""
    GenerationConfig.from_pretrained(STORED / "unspool", name).save_pretrained(tmp_path, name)
    assert (tmp_path / name).read_bytes() == (STORED / "unspool" / name).read_bytes()


@pytest.mark.parametrize("name", [name for name in THEIRS if not name.endswith("bias.json")])
def test_transformers_reads_its_own_files_the_same_after_we_have_rewritten_them(name: str, tmp_path: Path) -> None:
    folder, file = name.split("/")
    GenerationConfig.from_pretrained(STORED / folder, file).save_pretrained(tmp_path, file)
    before = transformers.GenerationConfig.from_pretrained(STORED / folder, file)
    after = transformers.GenerationConfig.from_pretrained(tmp_path, file)
    for attribute in (*WRITTEN[file], "transformers_version"):
        assert _as_list(getattr(after, attribute)) == _as_list(getattr(before, attribute)), attribute


@pytest.mark.parametrize("folder", ["transformers-4.48", "transformers-5.23"])
def test_a_bias_that_transformers_itself_cannot_read_back_is_mended(folder: str, tmp_path: Path) -> None:
    """It writes the keys of a dict as text, and takes that text for tokens when it reads the file."""
    broken = transformers.GenerationConfig.from_pretrained(STORED / folder, "bias.json")
    with pytest.raises(ValueError):
        transformers.SequenceBiasLogitsProcessor(broken.sequence_bias)
    GenerationConfig.from_pretrained(STORED / folder, "bias.json").save_pretrained(tmp_path)
    mended = transformers.GenerationConfig.from_pretrained(tmp_path)
    processor = transformers.SequenceBiasLogitsProcessor(mended.sequence_bias)
    assert processor(torch.tensor([[5]]), torch.zeros(1, 12))[0, [7, 9, 0]].tolist() == [-2.0, 1.5, 0.0]


def _as_list(value: Any) -> Any:
    return [value] if type(value) is int else value

"""Files: ours, transformers', and the hub."""

import json

import pytest

from unspool.config import GenerationConfig, resolve
from unspool.errors import ModelError


def test_a_saved_config_is_read_back_the_same(tmp_path):
    config = GenerationConfig(
        temperature=0.7,
        top_k=None,
        max_new_tokens=None,
        eos_token_id=[1, 2],
        sequence_bias={(1, 2): -3.0},
        stop_strings="é\n",
        seed=3,
    )
    config.save_pretrained(tmp_path / "new" / "folder")
    back = GenerationConfig.from_pretrained(tmp_path / "new" / "folder")
    assert back.explicit == config.explicit
    assert resolve({}, back) == resolve({}, config)
    assert back.diff(config) == {"top_k": (0, None)}


def test_unknown_attributes_survive_reading_and_writing(tmp_path):
    stored = {"task_prefix": "x", "top_p": 0.9, "temperature": None, "min_p": 7.0, "transformers_version": "4.1"}
    (tmp_path / "generation_config.json").write_text(json.dumps(stored))
    config = GenerationConfig.from_pretrained(tmp_path)
    assert config.explicit == {"top_p"}
    assert config.extras == {"task_prefix": "x", "min_p": 7.0, "transformers_version": "4.1"}
    config.save_pretrained(tmp_path, "again.json")
    assert GenerationConfig.from_pretrained(tmp_path, "again.json").extras == config.extras


def test_transformers_reads_what_we_write_and_we_read_what_it_writes(tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = GenerationConfig(do_sample=True, temperature=0.7, top_k=None, eos_token_id=[1, 2], bad_words_ids=[[3], [4]])
    ours.save_pretrained(tmp_path)
    theirs = transformers.GenerationConfig.from_pretrained(tmp_path)
    assert (theirs.temperature, theirs.top_k, theirs.eos_token_id, theirs.bad_words_ids) == (0.7, 0, [1, 2], [[3], [4]])
    theirs.save_pretrained(tmp_path)
    again = GenerationConfig.from_pretrained(tmp_path)
    assert again.explicit == ours.explicit
    assert resolve({}, again) == resolve({}, ours)


def test_a_transformers_object_gives_its_set_attributes():
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig(do_sample=True, top_p=0.9, sequence_bias={(1, 2): -3.0}, lang_to_id={"a": 1})
    config = GenerationConfig.from_transformers(theirs)
    assert config == GenerationConfig(do_sample=True, top_p=0.9, sequence_bias={(1, 2): -3.0})
    assert config.extras["lang_to_id"] == {"a": 1}
    assert GenerationConfig.from_transformers(transformers.GenerationConfig()).explicit == frozenset()


def test_a_watermark_in_a_transformers_object_is_not_lost(tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GenerationConfig(watermarking_config={"bias": 3.0})
    config = GenerationConfig.from_transformers(theirs)
    with pytest.raises(ValueError, match="watermarking_config"):
        resolve({}, None, config)
    config.save_pretrained(tmp_path)
    back = json.loads((tmp_path / "generation_config.json").read_text())
    assert back["watermarking_config"]["bias"] == 3.0


@pytest.mark.parametrize(("text", "words"), [("{", "cannot be read as JSON"), ("[1]", "must contain a JSON object")])
def test_a_broken_file_is_named(tmp_path, text, words):
    (tmp_path / "generation_config.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        GenerationConfig.from_pretrained(tmp_path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(ModelError, match="does not contain other.json"):
        GenerationConfig.from_pretrained(tmp_path, "other.json")


def test_a_name_that_is_neither_folder_nor_repository_is_named(tmp_path):
    pytest.importorskip("huggingface_hub")
    with pytest.raises(ModelError, match="neither a folder nor a hub repository"):
        GenerationConfig.from_pretrained(tmp_path / "absent")
    with pytest.raises(ModelError, match="cannot download"):
        GenerationConfig.from_pretrained("some/model", local_files_only=True, cache_dir=tmp_path)

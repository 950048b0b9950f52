"""GGUF files through load(): the tokens of the weights in them, the tokenizer, and messages in one line."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import unspool
from tests.gguf_files import greedy, write_gguf
from tests.text.tokenizers import MIXED, byte_level
from unspool import MissingExtra, ModelError, OptionError
from unspool.loading.gguf import cache as converted
from unspool.loading.gguf.opening import open_gguf

IDS = [5, 60, 71, 9]


def ours(lm: Any, ids: list[int] = IDS, **options: Any) -> list[int]:
    return list(lm.generate(ids, max_new_tokens=8, **options).completions[0].token_ids)


def test_a_file_writes_the_tokens_of_the_model_that_it_was_made_from(tiny_gguf: Path, tiny: PreTrainedModel) -> None:
    lm = unspool.load(tiny_gguf)
    assert ours(lm) == greedy(tiny, IDS, max_new_tokens=8)
    assert ours(lm, num_beams=3) == greedy(tiny, IDS, max_new_tokens=8, num_beams=3)
    assert lm.info.name == str(tiny_gguf) and "float32" in lm.info.backend


def test_quantized_weights_are_those_of_transformers_reader(tiny: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "q8.gguf", tiny, byte_level(), weights="Q8_0")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="q8.gguf", dtype=torch.float32)
    folder = open_gguf(str(path), None, "auto", {}).folder
    stored = AutoModelForCausalLM.from_pretrained(folder)
    assert all(torch.equal(stored.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert ours(unspool.load(path)) == greedy(theirs, IDS, max_new_tokens=8)


def test_tokenizer_and_chat_template_come_from_the_file(tiny_gguf: Path) -> None:
    lm, tokenizer = unspool.load(tiny_gguf), byte_level()
    for text in MIXED:
        assert lm.tokenizer(text)["input_ids"] == tokenizer(text)["input_ids"]
    ids = lm.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], return_dict=False)
    assert ids == tokenizer("<|turn|>user: hi<|turn|>assistant:")["input_ids"]
    assert lm.tokenizer.eos_token_id == tokenizer.eos_token_id


def test_a_folder_with_gguf_file_and_a_relative_path_mean_the_same_file(
    tiny_gguf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ours(unspool.load(tiny_gguf))
    assert ours(unspool.load(tiny_gguf.parent, gguf_file="tiny.gguf")) == expected
    assert (
        ours(unspool.load(tiny_gguf.parent.parent, gguf_file="tiny.gguf", subfolder=tiny_gguf.parent.name)) == expected
    )
    monkeypatch.chdir(tiny_gguf.parent)
    assert ours(unspool.load("tiny.gguf")) == expected
    assert len(list(cache.iterdir())) == 1


def test_a_hub_id_with_gguf_file_goes_through_the_hub(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def cached_file(repository: str, name: str, **options: Any) -> str:
        asked.update(repository=repository, name=name, **options)
        return str(tiny_gguf)

    monkeypatch.setattr("transformers.utils.hub.cached_file", cached_file)
    lm = unspool.load("owner/name", gguf_file="tiny.gguf", revision="abc", trust_remote_code=True)
    assert asked == {"repository": "owner/name", "name": "tiny.gguf", "revision": "abc"}
    assert lm.info.name == "owner/name" and len(ours(lm)) == 8


def test_dtype_and_quantize_apply_on_top(tiny_gguf: Path, cache: Path) -> None:
    assert "bfloat16" in unspool.load(tiny_gguf, dtype="bfloat16").info.backend
    assert [folder.name[-8:] for folder in cache.iterdir()] == ["bfloat16"]
    assert "quantized as int8" in unspool.load(tiny_gguf, quantize="int8").info.backend
    assert len(list(cache.iterdir())) == 2  # int8 is computed from float32
    assert "bfloat16" in unspool.load(tiny_gguf, dtype="bfloat16").info.backend


def test_save_pretrained_writes_a_folder_that_transformers_reads(tiny_gguf: Path, tmp_path: Path) -> None:
    lm = unspool.load(tiny_gguf)
    lm.save_pretrained(tmp_path / "saved")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert greedy(model, IDS, max_new_tokens=8) == ours(lm)
    assert AutoTokenizer.from_pretrained(tmp_path / "saved").chat_template == lm.tokenizer.chat_template


def test_the_end_of_a_turn_ends_an_output(tiny: PreTrainedModel, tmp_path: Path) -> None:
    third = greedy(tiny, IDS, max_new_tokens=8)[2]
    path = write_gguf(tmp_path / "x.gguf", tiny, byte_level(), extend=lambda writer: writer.add_eot_token_id(third))
    result = unspool.load(path).generate(IDS, max_new_tokens=8).completions[0]
    assert (result.finish_reason, result.token_ids[-1]) == ("eos", third)


def test_without_the_package_the_pip_line_is_said(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(
        MissingExtra, match=r"'tiny.gguf' is a GGUF file, which needs gguf: pip install \"unspool\[gguf\]\""
    ):
        unspool.load(tiny_gguf)


def test_a_converted_file_needs_no_package(tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = ours(unspool.load(tiny_gguf))
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert ours(unspool.load(tiny_gguf)) == expected


def _cut(tiny: PreTrainedModel, path: Path, keep: float) -> None:
    whole = write_gguf(path, tiny, byte_level()).read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])


BROKEN = {
    "no GGUF": (lambda tiny, path: path.write_bytes(b"nothing"), "it is not a GGUF file"),
    "empty": (lambda tiny, path: path.write_bytes(b""), "it is not a GGUF file"),
    "cut in the header": (lambda tiny, path: _cut(tiny, path, 0.02), "its GGUF header is damaged or cut short"),
    "cut in the weights": (lambda tiny, path: _cut(tiny, path, 0.9), "of architecture 'llama': it is cut short"),
    "unknown architecture": (
        lambda tiny, path: write_gguf(path, tiny, byte_level(), architecture="clip"),
        "of architecture 'clip': GGUF model with architecture clip is not supported",
    ),
    "a part": (
        lambda tiny, path: write_gguf(
            path, tiny, byte_level(), extend=lambda writer: writer.add_uint16("split.count", 3)
        ),
        "of architecture 'llama': it is one of 3 parts",
    ),
    "a tensor is absent": (
        lambda tiny, path: write_gguf(path, tiny, byte_level(), without=("blk.1.ffn_up.weight",)),
        "it lacks weights for model.layers.1.mlp.up_proj.weight",
    ),
    "another version": (
        lambda tiny, path: path.write_bytes(b"GGUF" + bytes([1, 0, 0, 0])),
        "it is of GGUF version 1",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_file_that_cannot_be_read_is_named_in_one_line(
    case: str, tiny: PreTrainedModel, tmp_path: Path, cache: Path
) -> None:
    pytest.importorskip("gguf")
    make, message = BROKEN[case]
    path = tmp_path / "broken.gguf"
    make(tiny, path)
    with pytest.raises(ModelError, match=message) as caught:
        unspool.load(path)
    assert "broken.gguf" in str(caught.value) and "\n" not in str(caught.value)
    assert not list(cache.glob("*"))


@pytest.mark.parametrize(
    ("source", "gguf_file", "error", "message"),
    [
        ("nowhere.gguf", None, ModelError, "cannot load 'nowhere.gguf': the file does not exist"),
        (".", "nowhere.gguf", ModelError, "the file does not exist; GGUF files there: none"),
        (".", "model.bin", OptionError, "`gguf_file` must be the name of a GGUF file"),
        (__file__, "x.gguf", OptionError, "`gguf_file` is read with a folder or a hub id"),
        ("owner/none", "x.gguf", ModelError, "cannot load 'x.gguf' of 'owner/none'"),
    ],
)
def test_a_file_that_is_not_there_is_said_in_one_line(
    source: str, gguf_file: str | None, error: type[Exception], message: str, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message) as caught:
        unspool.load(source, gguf_file=gguf_file)
    assert "\n" not in str(caught.value)


def test_a_loaded_model_takes_no_gguf_file(tiny: PreTrainedModel) -> None:
    with pytest.raises(ModelError, match="`gguf_file` is an option of loading"):
        unspool.load(tiny, gguf_file="x.gguf")


def test_the_conversion_is_told_at_a_terminal(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    unspool.load(tiny_gguf)
    assert (
        f"converting tiny.gguf once; the weights are then kept in {converted.cache_folder()}" in capsys.readouterr().err
    )
    unspool.load(tiny_gguf)
    assert "converting" not in capsys.readouterr().err

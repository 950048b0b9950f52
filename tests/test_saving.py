"""save_pretrained(): what is loaded and saved is what was there, bit for bit; a user's own model saves itself."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedModel

import unspool
from tests.sampling import sampled
from tests.text.tokenizers import byte_level
from tests.tiny_models import FAMILIES, tiny_model
from tests.tiny_seq2seq import FAMILIES as SEQ2SEQ
from tests.tiny_seq2seq import tiny_seq2seq
from tests.toys import toy
from unspool import LanguageModel, ModelError
from unspool.kernels.library import kernels, obstacle
from unspool.runtimes.weights.autotune import VARIABLE
from unspool.runtimes.weights.packed_linear import PackedLinear

MODELS = [
    ("gpt2", torch.float32),  # Conv1D, and a head that is tied
    ("llama", torch.bfloat16),  # a head of its own
    ("t5", torch.float32),  # an encoder; its weights are hidden from it
    ("bart", torch.bfloat16),
]


@pytest.fixture(autouse=True)
def unpacked(monkeypatch: pytest.MonkeyPatch) -> list[PackedLinear]:
    """Pack every layer. Returns the layers that are unpacked later."""
    if kernels() is None:
        pytest.skip(f"no kernels here: {obstacle()}")
    monkeypatch.setenv(VARIABLE, "native")
    layers: list[PackedLinear] = []
    unpack = PackedLinear.unpacked
    monkeypatch.setattr(PackedLinear, "unpacked", lambda self: (layers.append(self), unpack(self))[1])
    return layers


def make(family: str, **changes: Any) -> PreTrainedModel:
    return tiny_seq2seq(family, **changes) if family in SEQ2SEQ else tiny_model(family, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("family", "dtype"), MODELS, ids=lambda value: str(value).removeprefix("torch."))
def test_what_is_loaded_and_saved_is_what_was_there(
    family: str, dtype: torch.dtype, tmp_path: Path, unpacked: list[PackedLinear]
) -> None:
    model = make(family).to(dtype)
    model.save_pretrained(tmp_path / "before")
    lm = unspool.load(tmp_path / "before")
    written = lm.generate([5, 6, 7], max_new_tokens=6)

    unpacked.clear()
    lm.save_pretrained(tmp_path / "after")
    assert len(unpacked) >= 8
    assert not any(layer._source for layer in unpacked)
    assert_same(weights(tmp_path / "after"), weights(tmp_path / "before"))
    for name in ("config.json", "generation_config.json"):
        after, before = (json.loads((tmp_path / place / name).read_text()) for place in ("after", "before"))
        assert after == before

    again = type(model).from_pretrained(tmp_path / "after", dtype="auto")
    assert_same(again.state_dict(), model.state_dict())
    if again.config.tie_word_embeddings:
        assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    # Saving has taken nothing from what writes.
    assert lm.generate([5, 6, 7], max_new_tokens=6).completions == written.completions
    assert unspool.load(tmp_path / "after").generate([5, 6, 7], max_new_tokens=6).completions == written.completions


@pytest.mark.parametrize("family", sampled([*FAMILIES, *SEQ2SEQ], 8))
def test_every_family_is_saved_as_it_was(family: str, tmp_path: Path) -> None:
    make(family).save_pretrained(tmp_path / "before")
    try:
        unspool.load(tmp_path / "before").save_pretrained(tmp_path / "after")
    except ModelError as refusal:
        assert family == "rwkv" and "rescales its own weights" in str(refusal)
    else:
        assert_same(weights(tmp_path / "after"), weights(tmp_path / "before"))


def test_two_weights_that_might_be_tied_but_differ_stay_two(tmp_path: Path) -> None:
    model = tiny_model("gpt2", tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "before")
    assert "lm_head.weight" in weights(tmp_path / "before")
    unspool.load(tmp_path / "before").save_pretrained(tmp_path / "after")
    assert_same(weights(tmp_path / "after"), weights(tmp_path / "before"))


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    tokenizer = byte_level()
    tiny_model("llama", vocab_size=len(tokenizer)).save_pretrained(tmp_path / "before")
    lm = unspool.load(tmp_path / "before", tokenizer=tokenizer)
    lm.save_pretrained(tmp_path / "after")
    again = AutoTokenizer.from_pretrained(tmp_path / "after")
    assert again("the fox").input_ids == tokenizer("the fox").input_ids
    options: dict[str, Any] = {"max_new_tokens": 5, "ignore_eos": True}
    reloaded = unspool.load(tmp_path / "after")
    assert reloaded.generate("the fox", **options).text == lm.generate("the fox", **options).text


def test_what_is_loaded_in_another_type_is_saved_in_it(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.save_pretrained(tmp_path / "before")
    unspool.load(tmp_path / "before", dtype="bfloat16").save_pretrained(tmp_path / "after")
    assert_same(weights(tmp_path / "after"), model.bfloat16().state_dict())
    assert json.loads((tmp_path / "after" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_a_users_own_model_saves_itself_while_it_is_used_and_after(family: str, tmp_path: Path) -> None:
    model = make(family)
    model.save_pretrained(tmp_path / "before")
    lm = unspool.load(model)
    lm.generate([5, 6], max_new_tokens=3)
    model.save_pretrained(tmp_path / "while")
    lm.save_pretrained(tmp_path / "through")
    del lm
    gc.collect()
    model.save_pretrained(tmp_path / "after")
    for place in ("while", "through", "after"):
        assert_same(weights(tmp_path / place), weights(tmp_path / "before"))
        for name in ("config.json", "generation_config.json"):
            assert (tmp_path / place / name).read_text() == (tmp_path / "before" / name).read_text()


def test_a_model_is_not_kept_alive_to_be_saved(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    lm = unspool.load(model)
    del model
    gc.collect()
    assert lm.generate([5, 6], max_new_tokens=3).text is not None
    with pytest.raises(ModelError, match=r"given to `unspool\.load` is gone"):
        lm.save_pretrained(tmp_path / "after")


def test_training_steps_are_saved(tmp_path: Path) -> None:
    model = tiny_model("llama")
    lm = unspool.load(model)
    lm.generate([5, 6], max_new_tokens=2)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    lm.save_pretrained(tmp_path / "after")
    assert torch.equal(weights(tmp_path / "after")["lm_head.weight"], model.lm_head.weight)


def test_a_folder_that_holds_a_model_is_refused(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    lm = unspool.load(tmp_path)
    with pytest.raises(ModelError, match="it already has a model; name another folder"):
        lm.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    file = tmp_path / "config.json"
    with pytest.raises(ModelError, match="it is a file; name a folder"):
        lm.save_pretrained(file)


def test_quantized_weights_are_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path / "before")
    lm = unspool.load(tmp_path / "before", quantize="int8")
    with pytest.raises(ModelError, match=r"layers are quantized \(int8\)"):
        lm.save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after").exists()


def test_what_was_made_from_a_runtime_has_nothing_to_save(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="it has no transformers model; save the original model"):
        LanguageModel(toy()).save_pretrained(tmp_path / "after")
    assert not (tmp_path / "after").exists()

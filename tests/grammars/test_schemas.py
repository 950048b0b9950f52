"""Schemas: valid instances are accepted token by token and invalid ones rejected, as jsonschema judges them."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

import unspool
from tests.grammars.schemas import CASES, Case
from tests.grammars.toys import compiled
from tests.text.tokenizers import byte_fallback, byte_level


@pytest.fixture(scope="module")
def tale_tokenizer() -> Any:
    return unspool.load().tokenizer


def is_valid(instance: Any, schema: dict[str, Any]) -> bool:
    checker = jsonschema.FormatChecker()
    return bool(jsonschema.Draft202012Validator(schema, format_checker=checker).is_valid(instance))


def spellings(instance: Any) -> list[str]:
    """Return the JSON of an instance in the two forms that an output can have."""
    return [
        json.dumps(instance, ensure_ascii=False),
        json.dumps(instance, ensure_ascii=False, separators=(",", ":")),
    ]


@pytest.mark.model
@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_valid_instances_are_accepted_and_invalid_ones_rejected(case: Case, tale_tokenizer: Any) -> None:
    if case.name not in ("date and time", "time", "identifier"):  # jsonschema checks these with further packages only
        assert all(is_valid(each, case.schema) for each in case.valid)
        assert not any(is_valid(each, case.schema) for each in case.invalid)
    for tokenizer in (tale_tokenizer, byte_level(), byte_fallback()):
        grammar = compiled(tokenizer, json_schema=case.schema)
        for instances, expected in ((case.valid, True), (case.invalid, False)):
            for text in (spelling for each in instances for spelling in spellings(each)):
                ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
                assert tokenizer.decode(ids) == text or tokenizer is not tale_tokenizer
                assert grammar.accepts_text(text) is expected, text
                if tokenizer is not byte_fallback():  # its encodings begin with a space
                    assert grammar.accepts(ids) is expected, text


def test_there_are_about_sixty_schemas_with_different_names() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 60

"""The OpenAPI document is true: schemathesis sends bodies that it derives from the document, good and bad ones."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import strategies
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

import unspool
from tests.sampling import run_all
from tests.serving.conftest import serving
from tests.serving.load import eventually

pytestmark = pytest.mark.model

CHECKS = [content_type_conformance, response_schema_conformance, status_code_conformance, unsupported_method]


@pytest.fixture(scope="module")
def service(tale: unspool.LanguageModel) -> Iterator[tuple[str, Any]]:
    """A server with small limits, which takes any model name: most bodies then reach the engine."""
    limits = {"max_n": 3, "max_beams": 3, "max_prompts": 3, "max_prompt_tokens": 64, "default_max_tokens": 4}
    with serving(tale, any_model=True, timeout=2.0, assistants={"draft": tale}, **limits) as found:
        yield found


@pytest.fixture(scope="module")
def document(service: tuple[str, Any]) -> Any:
    """The document as the server gives it."""
    return schemathesis.openapi.from_url(f"{service[0]}/openapi.json")


def test_every_answer_is_as_documented_and_none_is_a_fault(document: Any, service: tuple[str, Any]) -> None:
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) > 10

    @hypothesis.settings(
        max_examples=3000 if run_all() else 150,
        deadline=None,
        database=None,
        derandomize=not run_all(),
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    @hypothesis.given(strategies.data())
    def answers_truly(data: strategies.DataObject) -> None:
        operation = data.draw(strategies.sampled_from(operations))
        mode = data.draw(strategies.sampled_from(list(GenerationMode)))
        case = data.draw(operation.as_strategy(generation_mode=mode))
        answer = case.call(timeout=60)
        case.validate_response(answer, checks=CHECKS if _is_timeout(answer) else [*CHECKS, not_a_server_error])
        assert eventually(lambda: not service[1].admission.running), "the request still holds its place"

    answers_truly()


def _is_timeout(answer: Any) -> bool:
    """Return whether the server ended a long request, as it was told to."""
    return bool(answer.status_code == 504 and answer.json()["error"]["code"] == "timeout")


def test_every_reference_in_the_document_leads_somewhere(document: Any) -> None:
    def references(value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            if isinstance(reference := value.get("$ref"), str):
                yield reference
            value = list(value.values())
        if isinstance(value, list):
            for each in value:
                yield from references(each)

    raw = document.raw_schema
    found = set(references(raw))
    assert "#/components/schemas/CompletionRequest" in found and "#/components/schemas/StreamOptions" in found
    for reference in found:
        place = raw
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]

"""The draft of the embedded model, which is quick, behind both pipelines: transformers' and ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import unspool
from tests.conftest import EMBEDDED

FOLDER = EMBEDDED / "draft"
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


@pytest.fixture(scope="session")
def theirs() -> Any:
    """transformers' own pipeline."""
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    tokenizer.chat_template = TEMPLATE
    model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype="float32")
    return transformers.pipeline("text-generation", model=model, tokenizer=tokenizer, device="cpu")


@pytest.fixture(scope="session")
def ours(theirs: Any) -> Iterator[Any]:
    """Ours over the same model and tokenizer."""
    return unspool.pipeline("text-generation", model=theirs.model, tokenizer=theirs.tokenizer)

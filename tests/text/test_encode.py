"""One call of a tokenizer, without transformers' warning about long texts."""

import logging
from collections.abc import Iterator

import pytest

import unspool
from unspool.text.encode import quiet, token_ids

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def tale() -> unspool.LanguageModel:
    return unspool.load()


@pytest.fixture
def warnings(tale: unspool.LanguageModel) -> Iterator[list[str]]:
    """Return what transformers' tokenizers warn of. Each warns once, so this forgets earlier warnings."""
    found: list[str] = []

    class Collects(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    logger = logging.getLogger("transformers.tokenization_utils_base")
    handler = Collects()
    logger.addHandler(handler)
    tale.tokenizer.deprecation_warnings.clear()
    yield found
    logger.removeHandler(handler)


LONG = "word " * 2000


def test_the_warning_is_there_without_us(tale: unspool.LanguageModel, warnings: list[str]) -> None:
    tale.tokenizer(LONG)
    assert "longer than the specified maximum" in warnings[0]


def test_a_prompt_that_is_too_long_brings_our_error_alone(tale: unspool.LanguageModel, warnings: list[str]) -> None:
    with pytest.raises(unspool.PromptError, match="shorten the prompt"):
        tale.generate(LONG)
    with pytest.raises(unspool.PromptError, match="holds 1024"):
        tale.score("The", LONG)
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(unspool.PromptError, match="shorten"):
        tale.chat([{"role": "user", "content": LONG}], chat_template=template)
    assert warnings == []


def test_other_tokenizers_get_no_option_that_they_may_not_know() -> None:
    def plain(text: str) -> dict[str, list[int]]:
        return {"input_ids": [len(text)]}

    assert token_ids(plain, "four") == (4,)
    assert quiet(plain) == {}

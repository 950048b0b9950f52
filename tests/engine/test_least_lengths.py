"""A least length that the model leaves no room for is refused when the request is submitted."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toys import mixing_toy, request
from unspool.engine import Engine
from unspool.errors import OptionError
from unspool.model import LanguageModel

PROMPT = [1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_new_tokens": 8}, "`min_new_tokens` must be at most 7: toy holds 10 tokens in all, and the prompt has 3"),
        ({"min_new_tokens": 8, "max_new_tokens": 90}, "`min_new_tokens` must be at most 7: toy holds 10"),
        ({"min_new_tokens": 6, "max_length": 8}, "`min_new_tokens` must be at most 5"),
        ({"min_length": 11}, "`min_length` must be at most 10, the prompt counted: toy holds 10 tokens in all"),
        ({"min_length": 9, "max_new_tokens": 5}, "`min_length` must be at most 8, the prompt counted"),
    ],
)
def test_it_is_refused_before_any_work(options: dict[str, Any], message: str) -> None:
    runtime = mixing_toy(max_length=10)
    engine = Engine(runtime)
    with pytest.raises(OptionError) as caught:
        engine.submit(request(PROMPT, **options))
    assert message in str(caught.value)
    assert engine.idle and not runtime.passes


@pytest.mark.parametrize("options", [{"min_new_tokens": 7}, {"min_length": 10}])
def test_as_many_as_there_is_room_for_are_written(options: dict[str, Any]) -> None:
    lm = LanguageModel(mixing_toy(max_length=10))
    result = lm.generate(PROMPT, do_sample=True, seed=1, max_new_tokens=7, **options)
    assert len(result.completions[0].token_ids) == 7

"""The strategy named dola leaves the tokens to greedy search or sampling."""

from __future__ import annotations

from typing import Any

import pytest

from tests.toys import mixing_toy, request, run_alone
from unspool.config import GenerationConfig
from unspool.strategies.dola import Dola
from unspool.types import Output


def outputs(**options: Any) -> tuple[Output, ...]:
    found = run_alone(mixing_toy, request([1, 2], max_new_tokens=8, **options))
    assert isinstance(found, tuple), found
    return found


@pytest.mark.parametrize(
    "options", [{}, {"repetition_penalty": 1.3}, {"temperature": 0.7, "seed": 3, "num_return_sequences": 3}]
)
def test_tokens_are_taken_as_by_greedy_search_or_sampling(options: dict[str, Any]) -> None:
    """As a strategy of the caller's own, without layers to contrast, it is the one it leaves the tokens to."""
    assert outputs(own={"strategy": Dola()}, **options) == outputs(**options)


def test_branches_are_reserved_for_what_runs() -> None:
    assert Dola().max_branches(GenerationConfig(do_sample=False, num_return_sequences=4)) == 1
    assert Dola().max_branches(GenerationConfig(do_sample=True, num_return_sequences=4)) == 4

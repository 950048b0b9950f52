"""Limits on the cache: kept to the token by every backend of decoders."""

from __future__ import annotations

from typing import Any

import pytest

from tests.runtimes.feeds import feed
from tests.tiny_models import tiny_model
from unspool.errors import CapacityError
from unspool.runtimes.choose import runtime_of


@pytest.mark.parametrize("family", ["gpt2", "bloom", "openai"])
def test_limits_are_kept_to_the_token_and_what_is_refused_changes_nothing(family: str) -> None:
    runtime: Any = runtime_of(tiny_model(family), owns_model=True, max_cache_tokens=100, max_sequences=3)
    assert (runtime.info.max_tokens, runtime.info.max_sequences) == (100, 3)
    runtime.forward([feed(0, [5] * 60), feed(1, [6] * 30)])
    with pytest.raises(CapacityError, match="at most 100 tokens; 101"):
        runtime.forward([feed(0, [7] * 10), feed(2, [8])])
    with pytest.raises(CapacityError, match="at most 100 tokens; 120"):
        runtime.fork(1, 2)
    runtime.check()
    runtime.forward([feed(0, [7] * 9), feed(2, [8])])
    runtime.release(0)
    runtime.fork(1, 3)
    with pytest.raises(CapacityError, match="at most 3 sequences; 4"):
        runtime.fork(2, 4)
    runtime.check()

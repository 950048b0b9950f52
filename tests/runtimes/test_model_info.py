"""Facts of a model that are read from its class and its config."""

from __future__ import annotations

import pytest
from torch import nn

from unspool.runtimes.model_info import cache_argument


class Earlier(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return input_ids


class Later(nn.Module):
    def forward(self, input_ids, cache=None):
        return input_ids


@pytest.mark.parametrize(("kind", "expected"), [(Earlier, "past_key_values"), (Later, "cache")])
def test_the_cache_has_the_name_that_the_forward_declares(kind: type[nn.Module], expected: str) -> None:
    assert cache_argument(kind()) == expected

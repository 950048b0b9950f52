"""Facts of a model that are read from its class and its config."""

from __future__ import annotations

import pytest
from torch import nn

from unspool.runtimes import model_info
from unspool.runtimes.model_info import cache_argument, cache_names


class Earlier(nn.Module):
    def forward(self, input_ids, past_key_values=None):
        return input_ids


class Later(nn.Module):
    def forward(self, input_ids, cache=None):
        return input_ids


@pytest.mark.parametrize(("kind", "expected"), [(Earlier, "past_key_values"), (Later, "cache")])
def test_the_cache_has_the_name_that_the_forward_declares(
    kind: type[nn.Module], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_info, "ALL_CACHE_NAMES", ["cache", "past_key_values"])
    assert cache_names() == ("cache", "past_key_values")
    assert cache_argument(kind()) == expected


def test_an_argument_of_that_name_is_another_object_before_the_change(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_info, "ALL_CACHE_NAMES", ["past_key_values", "mems"])
    assert cache_names() == ("past_key_values",)
    assert cache_argument(Later()) == "past_key_values"

"""The toy's tables, and what it says of itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from unspool.errors import ModelError, OptionError
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Feed

TABLE = {0: [0.5, 0.5], 1: [0.25, 0.75]}


def feed(*tokens: int, **options: Any) -> Feed:
    return Feed(seq=0, tokens=tokens, **{"asked": (len(tokens) - 1,), **options})


def test_hidden_states_are_the_probabilities_where_no_table_is_given() -> None:
    rows = ToyRuntime(TABLE, 2).forward([feed(0, 1, 0, hidden=True)])
    assert rows.hidden is not None and rows.hidden.tolist() == [[0.5, 0.5], [0.25, 0.75], [0.5, 0.5]]
    assert rows.logits.exp().tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "hidden", [{0: (1.0, 0.0, 0.0), 1: (0.0, 2.0, 0.0)}, lambda tokens: ((1, 0, 0), (0, 2, 0))[tokens[-1]]]
)
def test_hidden_states_come_from_a_table_or_a_function_of_any_width(hidden: Any) -> None:
    runtime = ToyRuntime(TABLE, 2, hidden=hidden)
    assert runtime.info.hidden_states
    rows = runtime.forward([feed(0, 1, asked=(), hidden=True)])
    assert rows.hidden is not None and rows.hidden.tolist() == [[1, 0, 0], [0, 2, 0]]
    assert rows.logits.shape == (0, 2)


def test_inner_rows_are_the_logs_of_what_the_function_says_of_tokens_and_layer() -> None:
    seen: list[tuple[tuple[int, ...], int]] = []

    def inner(tokens: tuple[int, ...], layer: int) -> list[float]:
        seen.append((tokens, layer))
        return [0.5**layer, 1 - 0.5**layer]

    runtime = ToyRuntime(TABLE, 2, inner=inner, num_layers=3, tied_head=True)
    assert (runtime.info.num_layers, runtime.info.tied_head) == (3, True)
    rows = runtime.forward([feed(0, 1, asked=(0, 1), layers=(2, 1))])
    assert rows.inner is not None
    torch.testing.assert_close(rows.inner.exp(), torch.tensor([[0.25, 0.75], [0.5, 0.5]] * 2))
    assert seen == [((0,), 2), ((0,), 1), ((0, 1), 2), ((0, 1), 1)]
    assert runtime.passes == [(2,)]


def test_layers_of_a_toy_without_any_are_refused_and_nothing_is_cached() -> None:
    runtime = ToyRuntime(TABLE, 2)
    assert runtime.info.num_layers is None
    with pytest.raises(ModelError, match="no inner layers"):
        runtime.forward([feed(0, layers=(0,))])
    assert not runtime.cached and not runtime.passes


@pytest.mark.parametrize(
    "options", [{"num_layers": 2}, {"inner": lambda tokens, layer: TABLE[0]}, {"inner": lambda *_: (), "num_layers": 0}]
)
def test_layers_are_given_with_their_number(options: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="num_layers"):
        ToyRuntime(TABLE, 2, **options)

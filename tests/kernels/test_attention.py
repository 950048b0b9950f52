"""Attention over slots: compared with float64, at each instruction set, alone and in company, with a shared prefix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from tests.kernels.levels import everywhere
from unspool.kernels.attention import SlotAttention, SlotQuery, SlotTensors, attends
from unspool.kernels.library import kernels, obstacle

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

SINKS = torch.linspace(-2, 2, 12)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaling": {"scaling": 0.3},
    "window": {"window": 7},
    "softcap": {"softcap": 2.0},
    "sinks": {"sinks": SINKS},
    "all": {"scaling": 0.3, "window": 20, "softcap": 3.0, "sinks": SINKS},
}
STOPS = (1, 2, 7, 16, 17, 50, 128)
"""Keys of each query: one, fewer than a window, and around whole vectors."""


class Case:
    """One call: a pool, the states of a row per slot, and its result.

    keys, values: [slots, groups, capacity, width]. query, key, value: [heads, rows, width].
    """

    def __init__(
        self,
        groups: int,
        width: int,
        value_width: int,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype = torch.float32,
        rows: int = len(STOPS),
    ) -> None:
        random = torch.Generator().manual_seed(groups + width)

        def made(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=random)

        self.keys, self.values = (
            made(rows, groups, 128, width).to(stored),
            made(rows, groups, 128, value_width).to(stored),
        )
        # Rows are side by side in memory, as the layers of a model pass them.
        self.query, self.key, self.value = (
            made(rows, heads, each).to(dtype).transpose(0, 1)
            for heads, each in ((12, width), (groups, width), (groups, value_width))
        )

    def run(self, bundles: Sequence[Sequence[SlotQuery]], **options: Any) -> torch.Tensor:
        """Return the results of all rows; those without a query are 0."""
        shape = (self.query.shape[1], 12, self.values.shape[-1])
        out = torch.zeros(shape, dtype=self.query.dtype)
        attention = SlotAttention(bundles, SlotTensors([self.keys], [self.values]))
        attention.attend(self.query[None], (self.key[None], self.value[None]), 0, out, **options)
        return out

    def expected(
        self,
        query: SlotQuery,
        scaling: float | None = None,
        window: int = 1 << 20,
        softcap: float = 0.0,
        sinks: Any = None,
    ) -> torch.Tensor:
        """Return the result of one query in float64, after its key and value were written."""
        seen = slice(max(0, query.stop - window), query.stop)
        keys, values = (each[query.slot, :, seen].double() for each in (self.keys, self.values))
        keys, values = (each.repeat_interleave(12 // len(each), 0) for each in (keys, values))
        scores = torch.einsum("hw,hkw->hk", self.query[:, query.row].double(), keys)
        scores = scores * (self.query.shape[-1] ** -0.5 if scaling is None else scaling)
        scores = softcap * (scores / softcap).tanh() if softcap else scores
        if sinks is not None:
            scores = torch.cat([scores, sinks.double()[:, None]], 1)
        return torch.einsum("hk,hkw->hw", scores.softmax(1)[:, : keys.shape[1]], values)


def alone(rows: int = len(STOPS)) -> list[list[SlotQuery]]:
    return [[SlotQuery(row, row, STOPS[row % len(STOPS)], row, 0)] for row in range(rows)]


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize(("groups", "width", "value_width"), [(12, 64, 64), (4, 80, 24), (2, 16, 128), (1, 8, 8)])
def test_each_query_reads_its_own_keys(level: str, name: str, groups: int, width: int, value_width: int) -> None:
    case = Case(groups, width, value_width)
    found = case.run(alone(), **OPTIONS[name])
    for (query,) in alone():
        assert case.keys[query.slot, :, query.stop - 1].equal(case.key[:, query.row])
        assert case.values[query.slot, :, query.stop - 1].equal(case.value[:, query.row])
        torch.testing.assert_close(found[query.row].double(), case.expected(query, **OPTIONS[name]), atol=5e-6, rtol=0)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
def test_bfloat16_rounds_the_result_alone(level: str, stored: torch.dtype) -> None:
    case = Case(4, 64, 64, torch.bfloat16, stored)
    found = case.run(alone())
    for (query,) in alone():
        assert case.keys[query.slot, :, query.stop - 1].equal(case.key[:, query.row].to(stored))
        expected = case.expected(query)
        assert ((found[query.row].double() - expected).abs() <= expected.abs() / 256 + 1e-5).all()


@pytest.mark.parametrize("name", OPTIONS)
def test_float32_in_bfloat16_slots_rounds_to_the_nearest(name: str) -> None:
    case = Case(4, 64, 64, torch.float32, torch.bfloat16)
    found = case.run(alone(), **OPTIONS[name])
    for (query,) in alone():
        assert case.keys[query.slot, :, query.stop - 1].equal(case.key[:, query.row].bfloat16())
        torch.testing.assert_close(found[query.row].double(), case.expected(query, **OPTIONS[name]), atol=5e-6, rtol=0)


@pytest.mark.parametrize("groups", [12, 4, 2, 1])
def test_all_levels_threads_and_companies_give_a_row_the_same_bits(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def results() -> tuple[torch.Tensor, torch.Tensor]:
        case = Case(groups, 40, 72, rows=40)
        together = case.run(alone(40), **OPTIONS["all"])
        each = [case.run([query], **OPTIONS["all"]) for query in alone(40)]
        return together, torch.stack([rows[row] for row, rows in enumerate(each)])

    found = everywhere(monkeypatch, results)
    assert all(each.equal(found[0]) for each in found)


@pytest.mark.parametrize("window", [None, 30])
def test_a_shared_prefix_is_read_in_its_own_slot_and_changes_no_bit(window: int | None) -> None:
    stops, shared = (60, 61, 80, 128), 50
    case, apart = (Case(4, 64, 64, rows=4) for _ in range(2))
    for each in (case.keys, case.values, apart.keys, apart.values):
        each[:, :, :shared] = each[:1, :, :shared]
    # The prefix of the other slots is not read at all.
    case.keys[1:, :, :shared] = case.values[1:, :, :shared] = torch.nan
    found = case.run([[SlotQuery(row, row, stop, 0, shared) for row, stop in enumerate(stops)]], window=window)
    assert found.equal(
        apart.run([[SlotQuery(row, row, stop, row, 0)] for row, stop in enumerate(stops)], window=window)
    )


def test_queries_of_one_slot_read_the_keys_of_those_before() -> None:
    case = Case(4, 64, 64, rows=5)
    queries = [SlotQuery(row, 2, 40 + row, 2, 0) for row in range(5)]
    found = case.run([queries])
    assert case.keys[2, :, 39:44].equal(case.key)
    for query in queries:
        torch.testing.assert_close(found[query.row].double(), case.expected(query), atol=5e-6, rtol=0)


def test_rows_without_a_query_stay_and_only_its_own_position_is_written() -> None:
    case = Case(4, 64, 64)
    before = case.keys.clone()
    found = case.run([[SlotQuery(3, 5, 17, 5, 0)]])
    assert found[3].count_nonzero() and not found[[0, 1, 2, 4, 5, 6]].count_nonzero()
    before[5, :, 16] = case.key[:, 3]
    assert case.keys.equal(before)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_stays_in_its_row(bad: float) -> None:
    case, healthy = (Case(4, 64, 64) for _ in range(2))
    case.keys[3, 0, 2, 5] = case.values[4, 0, 2, 5] = bad
    found, expected = case.run(alone()), healthy.run(alone())
    assert not found[3].isfinite().all() and not found[4].isfinite().all()
    others = [0, 1, 2, 5, 6]
    assert found[others].equal(expected[others])


def test_large_scores_overflow_nothing() -> None:
    case = Case(4, 64, 64)
    case.query *= 1e4
    found = case.run(alone())
    for (query,) in alone():
        torch.testing.assert_close(found[query.row].double(), case.expected(query), atol=1e-3, rtol=0)


def test_other_strides_and_types_of_the_states_give_the_same() -> None:
    case, other = (Case(4, 64, 64) for _ in range(2))
    other.query, other.key, other.value = (
        each.transpose(1, 2).contiguous().transpose(1, 2) for each in (other.query, other.key, other.value)
    )
    other.key = other.key.double()
    assert other.query.stride(2) != 1
    assert case.run(alone()).equal(other.run(alone()))


def test_more_keys_than_the_stack_holds() -> None:
    case = Case(4, 64, 64, rows=1)
    case.keys, case.values = (torch.randn(1, 4, 40_000, 64) for _ in range(2))
    query = SlotQuery(0, 0, 40_000, 0, 0)
    torch.testing.assert_close(case.run([[query]])[0].double(), case.expected(query), atol=5e-6, rtol=0)


@pytest.mark.parametrize(
    ("dtype", "stored", "expected"),
    [
        (torch.float32, torch.bfloat16, True),
        (torch.bfloat16, torch.float32, True),
        (torch.float16, torch.float32, False),
        (torch.float32, torch.float64, False),
    ],
)
def test_the_types_that_it_takes(dtype: torch.dtype, stored: torch.dtype, expected: bool) -> None:
    assert attends(dtype, stored) is expected

"""Tables of positions: the rows of the calls that they replace, bit for bit, or no tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from unspool.kernels.library import kernels, obstacle
from unspool.kernels.rows import gather
from unspool.runtimes.replay import position_tables as module
from unspool.runtimes.replay.graph_function import function_of
from unspool.runtimes.replay.position_tables import PositionTables, tabulate

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

FREQUENCIES = torch.tensor([1.0, 0.3, 0.01, 0.002])


def cosines(positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
    angles = positions[..., None] * FREQUENCIES
    return angles.cos(), angles.sin()


class Graph:
    """A graph over a constant and positions, each call with the facts that a tracer notes."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.constant, self.positions = self.graph.placeholder("constant_1"), self.graph.placeholder("positions")

    def call(self, name: str, *args: Any) -> fx.Node:
        node = self.graph.call_function(getattr(torch.Tensor, name), args)
        node.meta = {"dtype": torch.float32}
        return node

    def angles(self) -> fx.Node:
        return self.call("mul", self.call("__getitem__", self.positions, (..., None)), self.constant)

    def run(self) -> Callable[..., Any]:
        return function_of(self.graph, [FREQUENCIES], "test")


def test_calls_on_positions_become_lookups() -> None:
    made = Graph()
    angles = made.angles()
    cos, sin = made.call("cos", angles), made.call("sin", angles)
    made.graph.output((made.call("__getitem__", cos, (slice(None), None)), made.call("add", cos, sin)))
    before = made.run()
    tables = tabulate(made.graph, [FREQUENCIES])
    assert tables is not None
    after = made.run()
    targets = [node.target for node in made.graph.nodes if node.op == "call_function"]
    assert targets.count(gather) == 2 and torch.Tensor.cos not in targets
    for positions in ([0], [7, 3, 7], [255, 0], [256], [1000, 2], [40_000, 3], [5]):
        ids = torch.tensor([positions])
        assert all(map(torch.equal, after(ids), before(ids)))


def test_few_calls_and_other_graphs_stay() -> None:
    few = Graph()
    few.graph.output(few.call("cos", few.angles()).graph and few.call("__getitem__", few.positions, 0))
    assert tabulate(few.graph, [FREQUENCIES]) is None
    other = fx.Graph()
    other.output(other.placeholder("ids"))
    assert tabulate(other, []) is None


def test_a_row_that_depends_on_other_rows_gives_no_tables() -> None:
    """Rotary embeddings of some models scale the angles by the longest position."""
    made = Graph()
    angles = made.call("mul", made.angles(), made.call("amax", made.positions))
    made.graph.output(made.call("cos", angles))
    calls = list(made.graph.nodes)
    assert tabulate(made.graph, [FREQUENCIES]) is None and list(made.graph.nodes) == calls


def test_tables_grow_until_they_are_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TABLE_BYTES", 2 * 16 * 1000)
    tables = PositionTables(cosines)
    assert tables.grow(256)
    for position, size in ((255, 256), (300, 600), (599, 600), (600, 600), (70_000, 600), (3, 600)):
        positions = torch.tensor([[position, 1]])
        ids, *found = tables(positions)
        expected = cosines(positions)
        assert all(torch.equal(gather(table, ids), rows) for table, rows in zip(found, expected, strict=True))
        assert len(tables._tables[0]) == size


def test_a_function_that_changes_with_the_size_ends_the_tables() -> None:
    def scaled(positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (cosines(positions)[0] * (1 + (positions.amax() > 300)),)

    tables = PositionTables(scaled)
    assert tables.grow(256)
    for position in (400, 5, 400, 10):
        positions = torch.tensor([[position]])
        ids, table = tables(positions)
        assert torch.equal(gather(table, ids), scaled(positions)[0])
    assert len(table) == 256, "small positions are looked up"

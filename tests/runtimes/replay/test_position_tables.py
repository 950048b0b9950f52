"""Tables of positions: the rows of the calls that they replace, bit for bit, or no tables."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx

from unspool.kernels.library import kernels, obstacle
from unspool.kernels.rows import gather
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
    few.graph.output(few.call("mul", few.call("cos", few.positions), few.constant))
    assert tabulate(few.graph, [FREQUENCIES]) is None
    other = fx.Graph()
    other.output(other.placeholder("ids"))
    assert tabulate(other, []) is None


def test_calls_on_constants_alone_are_part_of_a_table() -> None:
    made = Graph()
    wide = made.call("double", made.constant)
    angles = made.call("mul", made.call("__getitem__", made.positions, (..., None)), wide)
    made.graph.output((made.call("cos", angles), made.call("exp", made.call("neg", made.constant))))
    before = made.run()
    assert tabulate(made.graph, [FREQUENCIES]) is not None
    ids = torch.tensor([[4, 9]])
    assert all(map(torch.equal, made.run()(ids), before(ids)))
    names = [node.target.__name__ for node in made.graph.nodes if node.op == "call_function"]
    assert "double" not in names and "neg" in names, "a call that nothing reads any more is removed"


def after_64(positions: torch.Tensor) -> torch.Tensor:
    """Return a factor of the angles, as of rotary embeddings that depend on the longest position."""
    return torch.where(positions.amax() >= 64, 0.5, 1.0)


@pytest.mark.parametrize("factor", [lambda positions: positions.amax(), lambda positions: positions.amin(), after_64])
def test_a_row_that_depends_on_other_rows_gives_no_tables(factor: Callable[[torch.Tensor], torch.Tensor]) -> None:
    made = Graph()
    scale = made.graph.call_function(factor, (made.positions,))
    scale.meta = {"dtype": torch.float32}
    made.graph.output(made.call("cos", made.call("mul", made.angles(), scale)))
    calls = list(made.graph.nodes)
    assert tabulate(made.graph, [FREQUENCIES]) is None and list(made.graph.nodes) == calls


def test_a_function_that_changes_with_the_size_ends_the_tables() -> None:
    def scaled(positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (cosines(positions)[0] * (1 + (positions.amax() > 300)),)

    tables = PositionTables(scaled)
    assert tables.grow(256)
    (table,) = tables(torch.tensor([[200]]))
    assert torch.equal(table[200], scaled(torch.tensor([[200]]))[0][0, 0])
    with pytest.raises(ValueError, match="depends on other tokens"):
        tables(torch.tensor([[400]]))


def test_a_model_with_few_positions_has_a_table_of_those_that_it_has() -> None:
    cached = torch.rand(300, 8)
    tables = PositionTables(lambda positions: (cached[positions],))
    assert tables.grow(256)
    for last in (200, 270, 299, 280):
        (table,) = tables(torch.tensor([[last, 0]]))
        assert torch.equal(table[last], cached[last]) and torch.equal(table[0], cached[0])
    with pytest.raises(ValueError, match="depends on other tokens"):
        tables(torch.tensor([[300]]))
    assert not PositionTables(lambda positions: (cached[:100][positions],)).grow(256)


def test_a_change_of_a_constant_makes_new_tables() -> None:
    frequencies = FREQUENCIES.clone()
    tables = PositionTables(lambda positions: ((positions[..., None] * frequencies).cos(),), [frequencies])
    assert tables.grow(256)
    positions = torch.tensor([[77]])
    for change in (lambda: frequencies.mul_(0.25), lambda: frequencies.set_(torch.ones(4))):
        change()
        (table,) = tables(positions)
        assert torch.equal(table[77], (77 * frequencies).cos())


def test_threads_that_grow_a_table_together_get_right_rows() -> None:
    tables = PositionTables(cosines)
    assert tables.grow(256)
    start, failures = threading.Barrier(8), list[Exception]()

    def look_up(last: int) -> None:
        start.wait()
        try:
            position = torch.tensor([[last]])
            rows = [table[last] for table in tables(position)]
            assert all(map(torch.equal, rows, (each[0, 0] for each in cosines(position))))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=look_up, args=(300 + 400 * number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures

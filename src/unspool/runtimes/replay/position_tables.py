"""Tables of numbers that depend on the position of a token alone, such as the cosines and sines of rotary embeddings.

A step then looks up a row per token, and PyTorch's calls for these few numbers are saved.

Owns which calls become tables, and their growth. Knows neither rotary embeddings nor models.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from unspool.kernels.library import kernels
from unspool.kernels.rows import gather
from unspool.runtimes.replay.graph_function import are_identical, function_of, part_of, results_of
from unspool.runtimes.replay.subgraphs import can_be_view
from unspool.tuning import MIN_TABLE_CALLS

_FIRST_SIZE = 256
"""Positions of a new table."""


def tabulate(graph: fx.Graph, constants: Sequence[Any]) -> PositionTables | None:
    """Replace calls that depend on the positions alone by lookups in tables, in place.

    Args:
        graph: of a recorded pass; its first inputs are `constants`, and one of the others is called "positions".
        constants: values of the first inputs.

    Returns:
        The tables; None if there are too few such calls, or if a row depends on other rows.
    """
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    positions = next((node for node in inputs[len(constants) :] if node.name == "positions"), None)
    if positions is None or kernels() is None:
        return None
    fixed, own = dict.fromkeys(inputs[: len(constants)]), dict[fx.Node, None]()
    for node in graph.nodes:
        is_call = node.op == "call_function" and not node.meta.get("writes") and "dtype" in node.meta
        if not is_call or node.target is gather:
            continue
        if all(each in fixed for each in node.all_input_nodes):
            fixed[node] = None
        elif all(each in fixed or each in own or each is positions for each in node.all_input_nodes):
            own[node] = None
    for node in reversed(list(own)):
        if can_be_view(node) and not any(user in own for user in node.users):
            del own[node]  # a view of a row
    results = results_of(own)
    if len(own) < MIN_TABLE_CALLS or not results:
        return None
    needed = _needed(results)
    read = {node: value for node, value in zip(inputs, constants, strict=False) if node in needed}
    calls = [node for node in graph.nodes if node in needed and node.op == "call_function"]
    values = list(read.values())
    compute = function_of(part_of((*read, positions), calls, results), values, "numbers of positions")
    tables = PositionTables(compute, values)
    if not tables.grow(_FIRST_SIZE):
        return None
    with graph.inserting_before(next(iter(own))):
        call = graph.call_function(tables, (positions,))
        rows = [graph.call_function(operator.getitem, (call, index)) for index in range(len(results))]
        for node, table in zip(results, rows, strict=True):
            found = graph.call_function(gather, (table, positions))
            found.meta = dict(node.meta)
            node.replace_all_uses_with(found)
    for node in [*reversed(own), *reversed(fixed)]:
        if node.op == "call_function" and not node.users:
            graph.erase_node(node)
    return tables


def _needed(results: Iterable[fx.Node]) -> set[fx.Node]:
    """Return the nodes that some results need, and the results."""
    needed, rest = set[fx.Node](), list(results)
    while rest:
        if (node := rest.pop()) not in needed:
            needed.add(node)
            rest += node.all_input_nodes
    return needed


class PositionTables:
    """The results of a function of positions, one row per position.

    Args:
        compute: int64 [1, rows] --> a tuple of tensors [1, rows, width].
        constants: the values that it reads. After a change in place, the tables are made again.
    """

    __name__ = "position_tables"

    def __init__(
        self, compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]], constants: Sequence[Any] = ()
    ) -> None:
        self._compute = compute
        self._read = [each for each in constants if isinstance(each, torch.Tensor)]
        self._tables: tuple[torch.Tensor, ...] = ()
        self._marks = self._now()
        self._lock = threading.Lock()  # several engines can share a model

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return tables with a row for each of these positions, [n, width] each.

        Raises:
            ValueError: if a row of such a table would depend on other rows.
        """
        greatest = int(positions.max())
        if self._now() != self._marks:
            with self._lock:
                self._tables, self._marks = (), self._now()
        tables = self._tables
        if not tables or greatest >= len(tables[0]):
            size = max(2 * greatest, _FIRST_SIZE)
            if not self.grow(size) and not self.grow(greatest + 1):  # a model can have few positions
                raise ValueError("a number of a position depends on other tokens")
            tables = self._tables
        return tables

    def grow(self, size: int) -> bool:
        """Make tables of at least so many positions.

        Returns:
            False if the function refuses such positions, or if a row depends on other rows. The tables stay then.
        """
        with self._lock, torch.inference_mode():
            if self._tables and len(self._tables[0]) >= size:
                return True
            try:
                whole = self._compute(torch.arange(size, device="cpu")[None])
                probes = [[0], [1], [size - 1], [size // 2, 1, 2]]
                alone = [self._compute(torch.tensor([probe], device="cpu")) for probe in probes]
            except Exception:  # a model can refuse positions with any error
                return False
            if any(each.ndim != 3 or each.shape[:2] != (1, size) for each in whole):
                return False
            tables = tuple(each[0] for each in whole)
            rows = [[table[probe][None] for table in tables] for probe in probes]
            old = [table[: len(before)] for table, before in zip(tables, self._tables, strict=False)]
            is_by_row = are_identical(rows, alone) and are_identical(old, self._tables)
            if is_by_row:
                self._tables = tables
            return is_by_row

    def _now(self) -> list[tuple[int, int]]:
        """Return a mark of each constant, which changes with its memory and with a write."""
        return [(each.data_ptr(), 0 if each.is_inference() else each._version) for each in self._read]

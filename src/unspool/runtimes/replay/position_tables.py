"""Tables of numbers that depend on the position of a token alone, such as the cosines and sines of rotary embeddings.

A step then looks up a row per token, and PyTorch's calls for these few numbers are saved.

Owns which calls become tables, and their growth. Knows neither rotary embeddings nor models.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from unspool.kernels.library import kernels
from unspool.kernels.rows import gather
from unspool.runtimes.replay.graph_function import are_identical, function_of
from unspool.runtimes.replay.subgraphs import can_be_view
from unspool.tuning import MAX_TABLE_BYTES, MIN_TABLE_CALLS

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
    known, own = {*inputs[: len(constants)], positions}, dict[fx.Node, None]()
    for node in graph.nodes:
        is_call = node.op == "call_function" and not node.meta.get("writes") and "dtype" in node.meta
        if is_call and node.target is not gather and all(each in known for each in node.all_input_nodes):
            known.add(node)
            own[node] = None
    for node in reversed(list(own)):
        if can_be_view(node) and not any(user in own for user in node.users):
            del own[node]  # a view of a row
    results = [node for node in own if any(user not in own for user in node.users)]
    if len(own) < MIN_TABLE_CALLS or not results:
        return None
    inner, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in (*inputs[: len(constants)], positions):
        copies[node] = inner.placeholder(node.name)
    for node in own:
        copies[node] = inner.node_copy(node, copies.__getitem__)
    inner.output(tuple(copies[node] for node in results))
    tables = PositionTables(function_of(inner, constants, "numbers of positions"))
    if not tables.grow(_FIRST_SIZE):
        return None
    with graph.inserting_before(next(iter(own))):
        call = graph.call_function(tables, (positions,))
        ids, *rows = (graph.call_function(operator.getitem, (call, index)) for index in range(len(results) + 1))
        for node, table in zip(results, rows, strict=True):
            found = graph.call_function(gather, (table, ids))
            found.meta = dict(node.meta)
            node.replace_all_uses_with(found)
    for node in reversed(own):
        graph.erase_node(node)
    return tables


class PositionTables:
    """The results of a function of positions, one row per position.

    Args:
        compute: int64 [1, rows] --> a tuple of tensors [1, rows, width].
    """

    __name__ = "position_tables"

    def __init__(self, compute: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]) -> None:
        self._compute = compute
        self._tables: tuple[torch.Tensor, ...] = ()
        self._can_grow = True

    def __call__(self, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return ids [1, rows], and tables [n, width], so that row ids[0, i] belongs to positions[0, i]."""
        last = int(positions.max())
        if last < len(self._tables[0]) or self.grow(2 * last):
            return positions, *self._tables
        found = [rows[0] for rows in self._compute(positions)]
        return torch.arange(positions.shape[1], device="cpu")[None], *found

    def grow(self, size: int) -> bool:
        """Make tables of so many positions. Returns False if they are too large, or if a row depends on other rows."""
        with torch.inference_mode():
            few = torch.tensor([[size // 2, 1, 2]], dtype=torch.int64, device="cpu")
            rows = self._compute(few)
            self._can_grow &= all(each.ndim == 3 and each.shape[:2] == (1, 3) for each in rows)
            if not self._can_grow or sum(each[0, 0].nbytes for each in rows) * size > MAX_TABLE_BYTES:
                return False
            tables = tuple(each[0] for each in self._compute(torch.arange(size, device="cpu")[None]))
            old = [table[: len(before)] for table, before in zip(tables, self._tables, strict=False)]
            self._can_grow = are_identical([table[few[0]] for table in tables], [each[0] for each in rows])
            self._can_grow &= are_identical(old, self._tables)
        if self._can_grow:
            self._tables = tables
        return self._can_grow

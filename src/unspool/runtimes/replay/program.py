"""A traced pass as one plain Python function: the same calls without the module tree, for any number of rows.

Owns the comparison of two traces of different sizes: a number that differs must be a multiple of one of the sizes.
Knows neither models nor caches.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import fx

from unspool.errors import kind_of
from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.replay.fusion import fuse
from unspool.runtimes.replay.graph_function import function_of
from unspool.runtimes.replay.operators import Unrecordable
from unspool.runtimes.replay.position_tables import tabulate
from unspool.runtimes.replay.subgraphs import join_calls
from unspool.runtimes.replay.tracer import Tracer


class Program:
    """One traced pass that runs with any number of rows.

    Args:
        first, second: finished traces of two sizes. The program takes over the graph of the first.
        rewritten: returns the function to call in place of a traced one; None for the traced ones.
        fuses: True to fuse operators, and to join calls of kernels; see fusion.py and subgraphs.py.
        cache_calls: methods of the cache that attend by a kernel.

    Attributes:
        graph: the calls; print it to read them.
        num_fused: number of fused calls.
        subgraphs: the joined calls.

    Raises:
        Unrecordable: if the traces differ in more than their sizes.
    """

    def __init__(
        self,
        first: Tracer,
        second: Tracer,
        *,
        rewritten: Callable[[Any], Any] | None = None,
        fuses: bool = False,
        cache_calls: Collection[str] = (),
    ) -> None:
        _join_traces(first, second)
        self.graph = first.graph
        if rewritten is not None:
            for node in self.graph.nodes:
                node.target = rewritten(node.target) if node.op == "call_function" else node.target
        self.num_fused = fuse(self.graph, first.constants) if fuses else 0
        self.graph.eliminate_dead_code(_is_needed)
        if fuses:
            tabulate(self.graph, first.constants)
        self.subgraphs = join_calls(self.graph, first.constants, cache_calls) if fuses else []
        self._run = function_of(self.graph, first.constants, "replay of a pass")

    def __call__(self, *given: Any) -> Any:
        """Run the pass. given: the cache, and the inputs and sizes of the tracer, in their order."""
        return self._run(*given)


def _is_needed(node: fx.Node) -> bool:
    """Return whether a call stays even if nothing reads its result."""
    return node.op in ("placeholder", "call_method", "output") or node.meta.get("writes", False)


def _join_traces(first: Tracer, second: Tracer) -> None:
    """Replace the numbers of the first trace that depend on the size of the pass."""
    graph, nodes, others = first.graph, list(first.graph.nodes), list(second.graph.nodes)
    if [(node.name, node.target) for node in nodes] != [(node.name, node.target) for node in others]:
        raise Unrecordable("its calls depend on the number of tokens")
    for constant, other in zip(first.constants, second.constants, strict=True):
        _check_same(constant, other, is_same=_are_same(constant, other))
    sizes = list(zip(first.sizes, first.sizes.values(), second.sizes.values(), strict=True))
    for node, other in zip(nodes, others, strict=True):
        leaves, structure = _leaves(node)
        other_leaves, other_structure = _leaves(other)
        if structure != other_structure:
            raise Unrecordable("the arguments of a call depend on the number of tokens")
        with graph.inserting_before(node):
            joined = [_join(*pair, sizes) for pair in zip(leaves, other_leaves, strict=True)]
        node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _next_of(joined))


def _leaves(node: fx.Node) -> tuple[list[Any], Any]:
    """Return the leaves among the arguments of a call, and the containers with zeros in their place."""
    leaves: list[Any] = []

    def collect(leaf: Any) -> int:
        leaves.append(leaf)
        return 0

    structure = fx.node.map_aggregate((node.args, node.kwargs), collect)
    return leaves, structure


def _next_of(values: Iterable[Any]) -> Callable[[Any], Any]:
    iterator = iter(values)
    return lambda _: next(iterator)


def _join(first: Any, second: Any, sizes: Sequence[tuple[fx.Node, int, int]]) -> Any:
    """Return an argument for passes of any size. sizes: the input that holds a size, and its value in both traces."""
    if isinstance(first, fx.Node):
        return _check_same(first, second, is_same=isinstance(second, fx.Node) and first.name == second.name)
    if type(first) is not int or type(second) is not int or first == second:
        return _check_same(first, second, is_same=_are_same(first, second))
    for node, size, other in sizes:
        factor, rest = divmod(first, size)
        if not rest and factor * other == second:
            return node if factor == 1 else node.graph.call_function(operator.mul, (node, factor))
    raise Unrecordable(f"a number is {first} in one pass and {second} in another")


def _check_same(first: Any, second: Any, *, is_same: bool) -> Any:
    if not is_same:
        one, other = (kind_of(each) if isinstance(each, torch.Tensor) else f"{each!r:.80}" for each in (first, second))
        raise Unrecordable(f"an argument is {one} in one pass and {other} in another")
    return first


def _are_same(first: Any, second: Any) -> bool:
    if first is second or type(first) is not type(second):
        return first is second
    if isinstance(first, AttentionParams):
        return all(_are_same(getattr(first, name), getattr(second, name)) for name in AttentionParams.__slots__)
    return not isinstance(first, torch.Tensor) and bool(first == second)

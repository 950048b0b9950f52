"""Subgraphs of a recorded pass that consist of calls of our kernels, each run from a command buffer by one call.

Between two matrix products, a step of one token has microseconds of work. The product has filled the caches of the CPU
with weights, so Python and PyTorch take ten times as long there as usual. A CUDA graph does the same for a GPU.

Owns which calls belong together, and the check of a subgraph against its calls. Knows neither models nor modules.
"""

from __future__ import annotations

import operator
import threading
from collections import Counter
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import fx
from torch.utils._pytree import tree_leaves

from unspool.kernels.commands import recording
from unspool.kernels.gate import gate
from unspool.kernels.layer_norm import layer_norm
from unspool.kernels.library import kernels
from unspool.kernels.packed import PackedWeight, linear
from unspool.kernels.rows import add, gather, rms_norm, rotate
from unspool.runtimes.replay.graph_function import are_identical, function_of, part_of, results_of
from unspool.runtimes.replay.recorded_calls import RecordedCalls, Unplannable, plan_calls
from unspool.tuning import MAX_COMMAND_BUFFERS, MIN_SUBGRAPH_CALLS, MIN_SUBGRAPH_PASSES

_KERNELS: Final = (add, gate, gather, layer_norm, linear, rms_norm, rotate)
_VIEWS: Final = frozenset(
    ("view", "reshape", "transpose", "unsqueeze", "squeeze", "permute", "flatten", "split", "chunk", "unbind")
    + ("getitem", "__getitem__")
)
"""Names of calls that return views as a rule. If one copies, this is found when the subgraph is recorded."""


def join_calls(graph: fx.Graph, constants: Sequence[Any], cache_calls: Collection[str]) -> list[Subgraph]:
    """Replace neighboring calls of kernels by one call of a `Subgraph`, in place.

    Args:
        graph: of a recorded pass; its first inputs are `constants`.
        cache_calls: methods of the pass's cache that attend by the kernel.

    Returns:
        The subgraphs; none without kernels.
    """
    if kernels() is None:
        return []
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    values = dict(zip(inputs, constants, strict=False))
    _delay_lookups(graph, values)
    return [_join(graph, part, values) for part in _stretches(graph, cache_calls)]


def _stretches(graph: fx.Graph, cache_calls: Collection[str]) -> Iterator[list[fx.Node]]:
    """Yield neighbors that can be one subgraph, from the first call of a kernel to the last."""
    part: list[fx.Node] = []
    for node in list(graph.nodes):
        if _is_kernel(node) or node.target in cache_calls or (part and can_be_view(node)):
            part.append(node)
            continue
        yield from _ended(part, cache_calls)
        part = []


def _is_kernel(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in _KERNELS or _is_packed_lookup(node))


def _is_packed_lookup(node: fx.Node) -> bool:
    return getattr(node.target, "__func__", None) is PackedWeight.rows


def _delay_lookups(graph: fx.Graph, values: Mapping[fx.Node, Any]) -> None:
    """Move lookups in constants to their first readers: other calls can be between the tokens and the layers."""
    order = {node: index for index, node in enumerate(graph.nodes)}
    for node in list(graph.nodes):
        is_lookup = _is_packed_lookup(node) or (node.target is gather and node.args[0] in values)
        if is_lookup and node.users and all(each.op == "placeholder" for each in node.all_input_nodes):
            min(node.users, key=order.__getitem__).prepend(node)


def _ended(part: list[fx.Node], cache_calls: Collection[str]) -> Iterator[list[fx.Node]]:
    while part and can_be_view(part[-1]):
        part.pop()
    if sum(not can_be_view(node) for node in part) >= MIN_SUBGRAPH_CALLS:
        yield part


def can_be_view(node: fx.Node) -> bool:
    """Return whether a call returns a view as a rule, and no kernel computes it."""
    if node.op != "call_function" or _is_kernel(node) or node.meta.get("writes"):
        return False
    if node.target is operator.mul and "dtype" not in node.meta:
        return True  # a size
    is_indexed = any("dtype" in each.meta for each in node.all_input_nodes[1:])
    return getattr(node.target, "__name__", "") in _VIEWS and not is_indexed


def _join(graph: fx.Graph, part: Sequence[fx.Node], values: dict[fx.Node, Any]) -> Subgraph:
    own = dict.fromkeys(part)
    given = dict.fromkeys(each for node in part for each in node.all_input_nodes if each not in own)
    results = results_of(own)
    constants = [node for node in given if node in values]
    rest = [node for node in given if node not in values]
    inner = part_of((*constants, *rest), part, results)
    caches = [node.all_input_nodes[0] for node in part if node.op == "call_method"]
    subgraph = Subgraph(inner, [values[node] for node in constants], rest.index(caches[0]) if caches else None)
    with graph.inserting_after(part[-1]):
        call = graph.call_function(subgraph, tuple(rest))
    call.meta["writes"] = bool(caches)
    with graph.inserting_after(call):
        for index, node in enumerate(results):
            node.replace_all_uses_with(graph.call_function(operator.getitem, (call, index)))
    for node in reversed(part):
        graph.erase_node(node)
    return subgraph


class Subgraph:
    """Neighboring calls of kernels, and views between them, as one function.

    Inputs of new shapes run call by call, and are recorded after some passes. The first run of the recorded commands is
    compared with the calls, bit by bit; if the results differ, the calls run from then on.

    Args:
        graph: the calls. Its first inputs are `constants`, the results a tuple.
        constants: values of these inputs. Their memory stays.
        cache: index of the cache among the further inputs; None without one.

    Attributes:
        graph: the calls.
        obstacle: why commands are not used any more; "" if they can be.
        refused: why inputs of some shapes cannot be recorded, by shapes and strides.
    """

    __name__ = "subgraph"

    def __init__(self, graph: fx.Graph, constants: Sequence[Any], cache: int | None) -> None:
        self.graph, self._constants, self._cache = graph, list(constants), cache
        self._calls = function_of(graph, constants, "subgraph of a pass")
        self._recorded: dict[Hashable, RecordedCalls] = {}
        self._seen: Counter[Hashable] = Counter()
        self._memory = torch.empty(0, dtype=torch.uint8, device="cpu")
        # Of the memory: several engines can share a model.
        self._lock = threading.Lock()
        self.obstacle = ""
        self.refused: dict[Hashable, str] = {}

    def __call__(self, *given: Any) -> tuple[torch.Tensor, ...]:
        """Return the results of the calls. given: the further inputs, in their order."""
        cache: Any = None if self._cache is None else given[self._cache]
        attention = None if cache is None else cache.kernel_call
        if self.obstacle or (cache is not None and attention is None):
            return self._calls(*given)  # type: ignore[no-any-return]
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        kind = tuple((each.shape, each.stride()) for each in tensors)
        recorded = self._recorded.get(kind)
        if recorded is None:
            self._seen[kind] += 1
            waits = kind in self.refused or self._seen[kind] < MIN_SUBGRAPH_PASSES
            return self._calls(*given) if waits else self._record(kind, given, tensors)
        if not self._lock.acquire(blocking=False):
            return self._calls(*given)  # type: ignore[no-any-return]
        try:
            results = recorded.run(self._memory, tensors, None if attention is None else attention.address)
        finally:
            self._lock.release()
        return results if recorded.is_trusted else self._verified(recorded, results, given)

    def _verified(
        self, recorded: RecordedCalls, results: tuple[torch.Tensor, ...], given: Sequence[Any]
    ) -> tuple[torch.Tensor, ...]:
        expected: tuple[torch.Tensor, ...] = self._calls(*given)
        strides = [[each.stride() for each in given] for given in (results, expected)]
        recorded.is_trusted = are_identical(results, expected) and strides[0] == strides[1]
        if not recorded.is_trusted:
            self.obstacle = "the recorded commands gave other results"
            self._recorded.clear()
        return expected

    def _record(
        self, kind: Hashable, given: Sequence[Any], tensors: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """Run the calls one by one, and record them."""
        with recording() as buffers:
            results, made = self._run_nodes(given)
        try:
            if not buffers:
                raise Unplannable("there are too many calls")
            found = plan_calls(buffers[0], results, tensors, made, self._constants)
        except Unplannable as reason:
            self.refused[kind] = str(reason)
            return results
        if len(self._recorded) >= MAX_COMMAND_BUFFERS:
            self._recorded.pop(next(iter(self._recorded)))
        with self._lock:
            if found.size > len(self._memory):
                self._memory = torch.empty(found.size, dtype=torch.uint8, device="cpu")
            self._recorded[kind] = found
        return results

    def _run_nodes(self, given: Sequence[Any]) -> tuple[tuple[torch.Tensor, ...], list[torch.Tensor]]:
        """Run the calls one by one. Returns the results, and all tensors on the way."""
        inputs = iter((*self._constants, *given))
        values: dict[fx.Node, Any] = {}
        made: list[torch.Tensor] = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(inputs)
                continue
            args = fx.node.map_arg(node.args, values.__getitem__)
            if node.op == "output":
                return args[0], made
            kwargs = fx.node.map_arg(node.kwargs, values.__getitem__)
            if node.op == "call_method":
                found = getattr(args[0], node.target)(*args[1:], **kwargs)
            else:
                found = node.target(*args, **kwargs)
            values[node] = found
            made += [each for each in tree_leaves(found) if isinstance(each, torch.Tensor)]
        raise AssertionError("a graph ends with its output")

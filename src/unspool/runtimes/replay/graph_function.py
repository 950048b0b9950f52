"""A graph of calls as a plain Python function, and the comparison of the results of two ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_leaves


def function_of(graph: fx.Graph, constants: Sequence[Any], name: str) -> Callable[..., Any]:
    """Return the function of a graph. constants: values of its first inputs. name: of the code, in stack traces."""
    code = graph.python_code("self")
    names = dict(code.globals)
    exec(compile(code.src, f"<{name}>", "exec"), names)
    return partial(names["forward"], None, *constants)


def part_of(inputs: Iterable[fx.Node], calls: Iterable[fx.Node], results: Iterable[fx.Node]) -> fx.Graph:
    """Return a graph of some calls of a graph, in their order. Its results are a tuple."""
    part, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    for node in inputs:
        copies[node] = part.placeholder(node.name)
    for node in calls:
        copies[node] = part.node_copy(node, copies.__getitem__)
    part.output(tuple(copies[node] for node in results))
    return part


def results_of(calls: Collection[fx.Node]) -> list[fx.Node]:
    """Return the calls with results that other calls read."""
    return [node for node in calls if any(user not in calls for user in node.users)]


def are_identical(found: Any, expected: Any) -> bool:
    """Return whether two pytrees have tensors of equal shapes, dtypes and numbers; NaN equals NaN."""
    ours, theirs = tree_leaves(found), tree_leaves(expected)
    return len(ours) == len(theirs) and all(
        (one.shape, one.dtype) == (other.shape, other.dtype)
        and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        for one, other in zip(ours, theirs, strict=True)
    )

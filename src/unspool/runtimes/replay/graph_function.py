"""A graph of calls as a plain Python function, and the comparison of the results of two ways to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def are_identical(found: Any, expected: Any) -> bool:
    """Return whether two pytrees have tensors of equal shapes, dtypes and numbers; NaN equals NaN."""
    ours, theirs = tree_leaves(found), tree_leaves(expected)
    return len(ours) == len(theirs) and all(
        (one.shape, one.dtype) == (other.shape, other.dtype)
        and torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)
        for one, other in zip(ours, theirs, strict=True)
    )

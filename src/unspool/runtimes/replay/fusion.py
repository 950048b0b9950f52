"""Operator fusion in a recorded pass: RMSNorm, rotary embeddings, residuals and gates become one kernel call each.

A lookup, of an embedding or of some rows of a pass, becomes a call of its kernel.

A fused call gives the bits of the operators that it replaces; a replay that does not is found out, see replay.py. Knows
the algebra alone: neither models nor modules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import fx

from unspool.kernels.gate import gate
from unspool.kernels.library import INPUT_TYPES, kernels
from unspool.kernels.packed import linear
from unspool.kernels.rows import SHORTEST_ROW, Norm, add, gather, rms_norm, rotate, sum_lanes
from unspool.runtimes.weights.lazy_weight import LazyWeight

_SUMMED: Final = (add, gather, linear, rms_norm)
_CASTS: Final = ("to", "type_as", "float", "bfloat16")


def fuse(graph: fx.Graph, constants: list[Any]) -> int:
    """Fuse the calls of a traced pass, in place. Replaced calls stay as dead code if nothing reads them.

    Args:
        graph: of a `Tracer`.
        constants: the values of its first inputs. Grows by those of the fused calls.

    Returns:
        The number of fused calls; 0 without kernels.
    """
    return _Fusion(graph, constants).run() if kernels() is not None else 0


class _Fusion:
    def __init__(self, graph: fx.Graph, constants: list[Any]) -> None:
        self._graph, self._constants = graph, constants
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        self._first_input = inputs[len(constants)]
        self._values: dict[fx.Node, Any] = dict(zip(inputs, constants, strict=False))

    def run(self) -> int:
        num_fused = 0
        for node in list(self._graph.nodes):
            matches = (self._norm, self._rotation, self._residual, self._gate, self._embedding, self._selection, _sum)
            call = next((call for match in matches if (call := match(node)) is not None), None)
            if call is not None:
                self._replace(node, *call)
                num_fused += 1
        return num_fused

    def _replace(self, node: fx.Node, func: Callable[..., Any], args: Sequence[Any]) -> None:
        with self._graph.inserting_before(node):
            call = self._graph.call_function(func, tuple(args))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)

    def _constant(self, value: Any) -> fx.Node:
        self._constants.append(value)
        with self._graph.inserting_before(self._first_input):
            return self._graph.placeholder(f"constant_{len(self._constants)}")

    def _value(self, node: Any) -> Any:
        """Return the constant that a node holds, or computes from constants alone; None for any other node."""
        if not isinstance(node, fx.Node) or node in self._values:
            return self._values.get(node) if isinstance(node, fx.Node) else node
        if node.op != "call_function" or node.meta.get("writes") or "dtype" not in node.meta:
            return None
        args = [self._value(each) for each in node.args]
        if node.kwargs or any(value is None for value in args):
            return None
        with torch.no_grad():
            return node.target(*args)  # type: ignore[operator]

    def _norm(self, node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
        """Match x / sqrt(mean(x^2) + eps) * weight: Llama rounds before the product with the weight, Gemma after."""
        dtype = node.meta.get("dtype")
        if dtype not in INPUT_TYPES or (lanes := sum_lanes()) is None:
            return None
        product = _before_cast(node)
        for weight_node, normed in _factors(product):
            scaled = _before_cast(normed)
            for wide, root in _factors(scaled):
                eps = _inverse_root(root, wide)
                x = _before_cast(wide)
                if eps is None or _dtype(x) != dtype or _dtype(wide) != torch.float32:
                    continue
                rounds = product is node and scaled is not normed
                is_rounded_once = dtype == torch.float32 or (product is node) == rounds
                weight = self._value(weight_node)
                if is_rounded_once and _is_weight(weight, x, dtype if rounds else None):
                    norm = Norm(weight, eps, dtype, rounds=rounds, lanes=lanes)
                    return rms_norm, (x, self._constant(norm))
        return None

    def _rotation(self, node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
        """Match x * cos + (-second half, first half) * sin, alone or joined to the numbers that are not rotated."""
        if len(parts := _joined(node)) == 2:
            first, rest = parts
            if first.target is not rotate or len(first.users) > 1 or not _is_call(first.args[0], "getitem"):
                return None
            (part, cos, sin, half), x = first.args, first.args[0].args[0]
            is_split = _is_slice(part, x, slice(None, 2 * half)) and _is_slice(rest, x, slice(2 * half, None))
            return (rotate, (x, cos, sin, half)) if is_split else None
        for plain, turned in _pairs(node, "add"):
            for halves, sin in _factors(turned):
                for x, cos in _factors(plain):
                    half = (_shape(x) or (0,))[-1] // 2
                    if len(parts := _joined(halves)) != 2 or not _is_call(parts[0], "neg"):
                        continue
                    is_turned = _is_slice(parts[0].args[0], x, slice(half, None)) and _is_slice(
                        parts[1], x, slice(None, half)
                    )
                    if is_turned and _is_rotation(x, cos, sin):
                        return rotate, (x, cos, sin, half)
        return None

    def _residual(self, node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
        """Match the sum of a tensor and a product with a packed weight."""
        for product, other in _pairs(node, "add"):
            is_packed = isinstance(product, fx.Node) and product.target is linear and product.args[2] is None
            if is_packed and len(product.users) == 1 and _facts(other) == _facts(product) == _facts(node):
                return linear, (*product.args[:2], other)
        return None

    def _gate(self, node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
        """Match the product of an activation and a tensor."""
        for activated, other in _factors(node):
            is_gate = isinstance(activated, fx.Node) and activated.target is gate and activated.args[2] is None
            if is_gate and len(activated.users) == 1 and _facts(other) == _facts(activated) == _facts(node):
                return gate, (*activated.args[:2], other)
        return None

    def _embedding(self, node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
        """Match an embedding, of a packed weight or of a plain one."""
        if node.target is not F.embedding:
            return None
        weight = self._value(node.args[1])
        if isinstance(weight, LazyWeight):
            return None if weight.rows is None else (weight.rows, node.args[:1])
        is_plain = isinstance(weight, torch.Tensor) and weight.device.type == "cpu" and weight.is_contiguous()
        is_plain = is_plain and len(node.args) == 2 and node.kwargs.get("max_norm") is None
        is_plain = is_plain and _dtype(node.args[0]) == torch.int64
        return (gather, (node.args[1], node.args[0])) if is_plain else None

    def _selection(self, node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
        """Match some rows of a pass, x[:, ids] or x[ids]."""
        if not _is_call(node, "getitem") or len(shape := _shape(node.args[0])) < 2:
            return None
        x, index = node.args
        places = index if isinstance(index, tuple) else (index,)
        ids = [each for each in places if each != slice(None)]
        is_index = len(ids) == 1 and _dtype(ids[0]) == torch.int64 and len(_shape(ids[0])) == 1
        if not is_index or ids[0] in self._values:  # a constant can hold ids below 0
            return None
        *ones, _, width = shape
        is_rows = all(size == 1 for size in ones) and places.index(ids[0]) == len(ones)
        return (gather, (x, ids[0])) if is_rows and _shape(node) == (*ones, *_shape(ids[0]), width) else None


def _sum(node: fx.Node) -> tuple[Callable[..., Any], Sequence[Any]] | None:
    """Match the sum of two tensors of one shape, if a kernel computes one of them."""
    for x, z in _pairs(node, "add"):
        facts = _facts(x)
        if facts[0] in INPUT_TYPES and facts == _facts(z) == _facts(node) and x.target in _SUMMED:
            return add, node.args
    return None


def _is_call(node: Any, name: str) -> bool:
    """Return whether a node calls a function of this name, as an operator or a method, that writes nothing."""
    if not isinstance(node, fx.Node) or node.op != "call_function" or node.meta.get("writes"):
        return False
    return getattr(node.target, "__name__", "") in (name, f"__{name}__", f"__r{name}__")


def _pairs(node: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """Yield the two arguments of a call in both orders."""
    if _is_call(node, name) and len(node.args) == 2 and not node.kwargs:
        first, second = node.args
        yield first, second
        yield second, first


def _factors(node: Any) -> Iterator[tuple[Any, Any]]:
    return _pairs(node, "mul")


def _before_cast(node: Any) -> Any:
    """Return the tensor that a node converts to another type; the node itself if it converts nothing."""
    is_cast = any(_is_call(node, name) for name in _CASTS) and _shape(node.args[0]) == _shape(node)
    return node.args[0] if is_cast else node


def _inverse_root(node: Any, x: Any) -> float | None:
    """Match rsqrt(mean(x^2) + eps). Returns eps, or None."""
    if not _is_call(node, "rsqrt"):
        return None
    for mean, eps in _pairs(node.args[0], "add"):
        if isinstance(eps, float) and _is_call(mean, "mean") and _is_call(mean.args[0], "pow"):
            arguments = (*mean.args[1:], *mean.kwargs.values())
            if arguments in ((-1, True), ([-1], True)) and mean.args[0].args == (x, 2):
                return eps
    return None


def _joined(node: Any) -> Sequence[Any]:
    """Return the parts that a node joins along the last dimension."""
    if not _is_call(node, "cat") or (*node.args[1:], *node.kwargs.values()) != (-1,):
        return ()
    return node.args[0]  # type: ignore[no-any-return]


def _is_slice(node: Any, x: Any, part: slice) -> bool:
    """Return whether a node is a part of the last dimension of x."""
    return _is_call(node, "getitem") and node.args == (x, (..., part))


def _is_weight(value: Any, x: Any, dtype: torch.dtype | None) -> bool:
    """Return whether a value can be the weight of a norm of x. dtype: that it must have; None for any that we read."""
    if not isinstance(value, torch.Tensor) or value.device.type != "cpu" or value.dtype not in INPUT_TYPES:
        return False
    width = _shape(x)[-1]
    return value.shape == (width,) and width >= SHORTEST_ROW and dtype in (None, value.dtype)


def _is_rotation(x: Any, cos: Any, sin: Any) -> bool:
    """Return whether our kernel can rotate x, [1, n, m, width], with one cosine and sine per place or row of places."""
    shape, factor = _shape(x), _shape(cos)
    is_known = _dtype(x) in INPUT_TYPES and _facts(cos) == _facts(sin) and _dtype(cos) == _dtype(x)
    if not is_known or len(shape) != 4 or len(factor) != 4 or shape[3] != factor[3]:
        return False
    return shape[0] == 1 and all(size in (1, whole) for size, whole in zip(factor, shape, strict=True))


def _facts(node: Any) -> tuple[Any, Any]:
    return _dtype(node), _shape(node)


def _dtype(node: Any) -> Any:
    return node.meta.get("dtype") if isinstance(node, fx.Node) else None


def _shape(node: Any) -> Any:
    return node.meta.get("shape", ()) if isinstance(node, fx.Node) else ()

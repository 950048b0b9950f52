"""Which form of a linear layer is the fastest here: plain or packed, and with how many rows at least. It is measured.

Knows shapes, types and threads; no modules. What has been measured holds for the rest of the process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F

ROWS_HINT = 16
"""Rows a weight is packed for: as fast for 1 row (within 5 %) and twice as fast for 5 as one packed for 1."""

LEAST_ROWS = 4
"""What fewer rows are filled up to, where that is faster: oneDNN has kernels of another kind for them."""

_MANY_ROWS = 5
_ROUNDS = 5
# A form is left only for one that is clearly faster, so that noise does not decide, and rounding stays the same.
_CLEARLY = 0.9
# Larger layers behave as the largest that are tried; a call into oneDNN costs some 12 microseconds more than F.linear,
# which layers with fewer weights than the smallest do not earn back. In bfloat16 both calls cost the same.
_LARGEST = 1 << 24
_SMALLEST = {torch.float32: 1 << 17}


class Form(NamedTuple):
    """How a layer is best computed. packed: with a packed weight. least_rows: what fewer rows are filled up to."""

    packed: bool
    least_rows: int


class Shape(NamedTuple):
    """What the speed of a layer depends on."""

    in_features: int
    out_features: int
    dtype: torch.dtype
    threads: int


_FORMS: dict[Shape, Form] = {}


def is_small(in_features: int, out_features: int, dtype: torch.dtype) -> bool:
    """Return whether a layer is too small to be worth a trial: it is used with its plain weight."""
    return in_features * out_features < _SMALLEST.get(dtype, 0)


def form_of(in_features: int, out_features: int, dtype: torch.dtype) -> Form:
    """Return the fastest form of a layer of this shape on a CPU that can pack it."""
    if is_small(in_features, out_features, dtype):
        return Form(packed=False, least_rows=1)
    shape = Shape(in_features, min(out_features, max(1, _LARGEST // in_features)), dtype, torch.get_num_threads())
    if shape not in _FORMS:
        _FORMS[shape] = _measured(shape)
    return _FORMS[shape]


def _measured(shape: Shape) -> Form:
    with torch.no_grad():
        weight = torch.zeros(shape.out_features, shape.in_features, dtype=shape.dtype)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, ROWS_HINT)
        one, least, many = (torch.zeros(n, shape.in_features, dtype=shape.dtype) for n in (1, LEAST_ROWS, _MANY_ROWS))
        lone, filled, plain, several, plain_several = _fastest(
            [
                lambda: torch.ops.mkldnn._linear_pointwise(one, packed, None, "none", [], ""),
                lambda: torch.ops.mkldnn._linear_pointwise(least, packed, None, "none", [], ""),
                lambda: F.linear(one, weight),
                lambda: torch.ops.mkldnn._linear_pointwise(many, packed, None, "none", [], ""),
                lambda: F.linear(many, weight),
            ]
        )
    if plain < _CLEARLY * min(lone, filled) and plain_several < _CLEARLY * several:
        return Form(packed=False, least_rows=1)
    return Form(packed=True, least_rows=1 if lone < _CLEARLY * filled else LEAST_ROWS)


def _fastest(works: Sequence[Callable[[], object]]) -> list[float]:
    """Return the shortest time of each, in seconds, tried in turn."""
    best = [float("inf")] * len(works)
    for _ in range(_ROUNDS):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - started)
    return best

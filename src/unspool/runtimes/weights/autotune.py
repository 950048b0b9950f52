"""Autotuning of linear layers: plain or packed weights, and the fewest rows of a call, whichever is faster here.

Owns the trial and the environment variable `UNSPOOL_LINEAR`. Knows shapes, dtypes and threads. Does not know modules. A
result holds for the rest of the process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias, cast, get_args

import torch
import torch.nn.functional as F

from unspool.errors import OptionError
from unspool.tuning import (
    CLEARLY_FASTER,
    LARGEST_CPU_CACHE,
    LARGEST_TRIAL,
    PACK_ROWS,
    PADDED_ROWS,
    SEVERAL_ROWS,
    SMALLEST_PACKED,
    TRIAL_ROUNDS,
    USUAL_CPU_CACHE,
)

Choice: TypeAlias = Literal["auto", "plain", "packed"]

VARIABLE: Final = "UNSPOOL_LINEAR"
"""Environment variable, a `Choice`: "auto" times both forms of each layer; the others force one form for all layers."""

_SMALLEST = {torch.float32: SMALLEST_PACKED}


class LinearPlan(NamedTuple):
    """The form of a layer. packed: True for a packed weight. least_rows: shorter calls are padded to this many rows."""

    packed: bool
    least_rows: int


PLAIN, PACKED = LinearPlan(packed=False, least_rows=1), LinearPlan(packed=True, least_rows=PADDED_ROWS)


class Shape(NamedTuple):
    """The properties of a layer that its speed depends on."""

    in_features: int
    out_features: int
    dtype: torch.dtype
    threads: int


_FORMS: dict[Shape, LinearPlan] = {}


def choice() -> Choice:
    """Return the value of the environment variable `UNSPOOL_LINEAR`; "auto" if it is not set.

    Raises:
        OptionError: if it has another value than "auto", "plain" or "packed".
    """
    given = os.environ.get(VARIABLE) or "auto"
    if given not in get_args(Choice):
        raise OptionError(VARIABLE, given, "must be one of auto, plain, packed", 'unset it for "auto"')
    return cast(Choice, given)


def is_small(in_features: int, out_features: int, dtype: torch.dtype) -> bool:
    """Return whether a layer is too small for a trial: it uses its plain weight unless a form is forced."""
    return in_features * out_features < _SMALLEST.get(dtype, 0)


def best_plan(in_features: int, out_features: int, dtype: torch.dtype) -> LinearPlan:
    """Return the form of a layer of this shape on a CPU that can pack it: the forced one, else the fastest.

    Raises:
        OptionError: if `UNSPOOL_LINEAR` has no allowed value.
    """
    if (forced := choice()) != "auto":
        return PACKED if forced == "packed" else PLAIN
    if is_small(in_features, out_features, dtype):
        return PLAIN
    shape = Shape(in_features, min(out_features, max(1, LARGEST_TRIAL // in_features)), dtype, torch.get_num_threads())
    if shape not in _FORMS:
        _FORMS[shape] = _measured(shape)
    return _FORMS[shape]


def _measured(shape: Shape) -> LinearPlan:
    with torch.no_grad():
        lone, filled, plain, several, plain_several = _fastest(_works(shape))
    if plain < CLEARLY_FASTER * min(lone, filled) and plain_several < CLEARLY_FASTER * several:
        return PLAIN
    return LinearPlan(packed=True, least_rows=1 if lone < CLEARLY_FASTER * filled else PADDED_ROWS)


def _works(shape: Shape) -> list[Callable[[], object]]:
    """Return the calls to time: 1 packed row, 4, 1 plain row, 5 packed rows, 5 plain.

    Each call takes the next of many equal weights. Together these exceed the last-level cache, so that each call
    reads its weight from memory, as a decode step does.
    """
    generator = torch.Generator("cpu").manual_seed(0)
    weight = torch.empty(shape.out_features, shape.in_features, dtype=shape.dtype, device="cpu").uniform_(
        -1, 1, generator=generator
    )
    count = -(-last_level_cache() // weight.nbytes)
    plain = cycle([weight, *(weight.clone() for _ in range(count - 1))])
    packed = cycle([torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS) for _ in range(count)])
    one, least, many = (
        torch.empty(n, shape.in_features, dtype=shape.dtype, device="cpu").uniform_(-1, 1, generator=generator)
        for n in (1, PADDED_ROWS, SEVERAL_ROWS)
    )

    def by_packed(rows: torch.Tensor) -> Callable[[], object]:
        return lambda: torch.ops.mkldnn._linear_pointwise(rows, next(packed), None, "none", [], "")

    def by_plain(rows: torch.Tensor) -> Callable[[], object]:
        return lambda: F.linear(rows, next(plain))

    return [by_packed(one), by_packed(least), by_plain(one), by_packed(many), by_plain(many)]


@cache
def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the CPU's largest cache, at most 64 MiB; 32 MiB if the system does not tell."""
    sizes = [USUAL_CPU_CACHE]
    with suppress(OSError, ValueError):
        sizes = [int(file.read_text().strip().removesuffix("K")) << 10 for file in folder.glob("index*/size")] or sizes
    return min(max(sizes), LARGEST_CPU_CACHE)


def _fastest(works: Sequence[Callable[[], object]]) -> list[float]:
    """Return the shortest time of each, in seconds, tried in turn."""
    best = [float("inf")] * len(works)
    for _ in range(TRIAL_ROUNDS):
        for index, work in enumerate(works):
            started = time.perf_counter()
            work()
            best[index] = min(best[index], time.perf_counter() - started)
    return best

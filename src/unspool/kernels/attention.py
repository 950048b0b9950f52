"""Attention of single queries over keys and values in slots.

Owns the description of a call. Does not know sequences, layers or plans.

The bits of a row depend on its query and its own keys and values alone: every sum has one order for any number of rows
and threads, with a shared prefix or without one.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Final, NamedTuple

import torch

from unspool.kernels.library import INPUT_TYPES, kernels


class SlotQuery(NamedTuple):
    """One query of a pass.

    Attributes:
        row: of the tensors of the pass.
        slot: index of the slot of its keys and values.
        stop: it sees the keys at [0, stop), its own included.
        base: index of a slot that holds the same keys and values at [0, shared).
        shared: 0 if it reads all keys in its own slot.
    """

    row: int
    slot: int
    stop: int
    base: int
    shared: int


_NUMBERS: Final = 6
"""Numbers of a query for the kernel: those of `SlotQuery`, and a flag, cleared if a value is not finite."""


class _Cached(ctypes.Structure):
    _fields_ = [("keys", ctypes.c_void_p), ("values", ctypes.c_void_p)]


class _Pass(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("queries", "bundles", "layers")),
        *((name, ctypes.c_int64) for name in ("num_queries", "num_bundles", "capacity")),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in ("layer", "heads", "groups", "width", "value_width")),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("query", "key", "value") for axis in ("row", "head")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("type", "stored")),
    ]


def attends(dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Return whether `SlotAttention` runs here for a model of `dtype` with keys and values of dtype `stored`."""
    return dtype in INPUT_TYPES and stored in INPUT_TYPES and kernels() is not None


class SlotTensors:
    """The keys and values of a pool, for the kernel.

    Args:
        keys, values: per layer [slots, groups, capacity, width], contiguous, on the CPU; their memory stays.
    """

    def __init__(self, keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> None:
        library = kernels()
        assert library is not None, "the kernels are missing"
        self.attend = library.functions.unspool_attend
        pairs = [_Cached(key.data_ptr(), value.data_ptr()) for key, value in zip(keys, values, strict=True)]
        self._layers = (_Cached * len(pairs))(*pairs)
        self.address = ctypes.addressof(self._layers)
        self.capacity = keys[0].shape[2]
        self.dtypes = [key.dtype for key in keys]


class SlotAttention:
    """Attention of single queries over the slots of one pool, for all layers of a pass.

    Args:
        bundles: the queries; those of one bundle share keys and values, and one thread reads these for all of them.
        tensors: of the pool.

    Attributes:
        num_queries: number of queries.
        address: of the description of the pass.
    """

    def __init__(self, bundles: Sequence[Sequence[SlotQuery]], tensors: SlotTensors) -> None:
        firsts = [0, *accumulate(map(len, bundles))]
        self._queries = array("q", [number for bundle in bundles for query in bundle for number in (*query, 1)])
        self._bundles = array("q", firsts)
        self._tensors, self.num_queries = tensors, firsts[-1]
        addresses = (self._queries.buffer_info()[0], self._bundles.buffer_info()[0], tensors.address)
        self._pass = _Pass(*addresses, self.num_queries, len(bundles), tensors.capacity)
        self.address = ctypes.addressof(self._pass)

    def finite(self) -> Iterator[tuple[int, bool]]:
        """Yield (row, False if a value of that row was not finite in a layer so far), for each query."""
        numbers = self._queries
        return zip(numbers[::_NUMBERS], map(bool, numbers[_NUMBERS - 1 :: _NUMBERS]), strict=True)

    def attend(
        self,
        query: torch.Tensor,
        states: tuple[torch.Tensor, torch.Tensor],
        layer: int,
        out: torch.Tensor,
        *,
        scaling: float | None = None,
        window: int | None = None,
        softcap: float | None = None,
        sinks: torch.Tensor | None = None,
    ) -> None:
        """Write the key and the value of each query to its slot, and the results to its row of `out`.

        Args:
            query: [1, heads, rows, width], float32 or bfloat16.
            states: key and value of each row, [1, groups, rows, width] and [1, groups, rows, value width].
            layer: index of the layer in the pool.
            out: [rows, heads, value width], contiguous, the dtype of `query`.
            scaling: factor of the scores; None for 1 / sqrt(width).
            window: most keys that a query sees, its own included; None for all.
            softcap: scores become softcap * tanh(scores / softcap); None for no cap.
            sinks: [heads], a score without a value; None for none.

        Raises:
            MemoryError: if the memory for the scores is missing.
        """
        dtype = query.dtype
        query, key, value = (_strided(each, dtype) for each in (query, *states))
        sinks = None if sinks is None else sinks.float().contiguous()
        shapes = (query.shape[1], key.shape[1], query.shape[3], value.shape[3])
        strides = (query.stride(), key.stride(), value.stride())
        form = _form(layer, shapes, strides, window, scaling, softcap, dtype, self._tensors.dtypes[layer])
        pointers = (query.data_ptr(), key.data_ptr(), value.data_ptr(), None if sinks is None else sinks.data_ptr())
        if self._tensors.attend(form, self.address, *pointers, out.data_ptr(), torch.get_num_threads()):
            raise MemoryError("no memory for the scores of attention")


@lru_cache(maxsize=1024)
def _form(
    layer: int,
    shapes: tuple[int, int, int, int],
    strides: tuple[tuple[int, ...], ...],
    window: int | None,
    scaling: float | None,
    softcap: float | None,
    dtype: torch.dtype,
    stored: torch.dtype,
) -> Any:
    """Return the description of a layer.

    shapes: heads, groups, width, value width. strides: of query, key and value. stored: the dtype in the slots.
    """
    steps = [step for _, head, row, _ in strides for step in (row, head)]
    scale = shapes[2] ** -0.5 if scaling is None else scaling
    facts = (window or 0, scale, softcap or 0.0, INPUT_TYPES[dtype], INPUT_TYPES[stored])
    return ctypes.byref(_Attention(layer, *shapes, *steps, *facts))


def _strided(states: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return states of a dtype, with the numbers of a head side by side."""
    return states if states.stride(3) == 1 and states.dtype == dtype else states.to(dtype).contiguous()

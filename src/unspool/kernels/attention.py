"""Attention of single queries over keys and values in slots.

Owns the description of a call. Does not know sequences, layers or plans.

The bits of a row depend on its query and its own keys and values alone: every sum has one order for any number of rows
and threads, with a shared prefix or without one.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import NamedTuple

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


class _Attention(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_void_p)
            for name in ("queries", "bundles", "sinks", "query", "key", "value", "keys", "values")
        ),
        ("y", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("num_queries", "num_bundles", "heads", "groups", "width", "value_width")),
        ("capacity", ctypes.c_int64),
        *((f"{name}_{axis}", ctypes.c_int64) for name in ("query", "key", "value") for axis in ("row", "head")),
        ("window", ctypes.c_int64),
        ("scale", ctypes.c_float),
        ("softcap", ctypes.c_float),
        *((name, ctypes.c_int32) for name in ("type", "stored", "threads")),
    ]


def attends(dtype: torch.dtype, stored: torch.dtype) -> bool:
    """Return whether `SlotAttention` runs here for a model of `dtype` with keys and values of dtype `stored`."""
    return dtype in INPUT_TYPES and stored in INPUT_TYPES and kernels() is not None


class SlotAttention:
    """Attention of single queries over the slots of one pool, for all layers of a pass.

    Args:
        bundles: the queries; those of one bundle share keys and values, and one thread reads these for all of them.
    """

    def __init__(self, bundles: Sequence[Sequence[SlotQuery]]) -> None:
        library = kernels()
        assert library is not None, "the kernels are missing"
        self._attend = library.functions.unspool_attend
        queries = [number for bundle in bundles for query in bundle for number in query]
        firsts = [0]
        for bundle in bundles:
            firsts.append(firsts[-1] + len(bundle))
        self._queries = (ctypes.c_int64 * len(queries))(*queries)
        self._bundles = (ctypes.c_int64 * len(firsts))(*firsts)
        self._call = _Attention(ctypes.addressof(self._queries), ctypes.addressof(self._bundles))
        self._call.num_queries, self._call.num_bundles = firsts[-1], len(bundles)
        self._address = ctypes.addressof(self._call)

    def attend(
        self,
        query: torch.Tensor,
        states: tuple[torch.Tensor, torch.Tensor],
        cached: tuple[torch.Tensor, torch.Tensor],
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
            cached: keys and values of the pool, [slots, groups, capacity, width] each, contiguous.
            out: [rows, heads, value width], contiguous, the dtype of `query`.
            scaling: factor of the scores; None for 1 / sqrt(width).
            window: most keys that a query sees, its own included; None for all.
            softcap: scores become softcap * tanh(scores / softcap); None for no cap.
            sinks: [heads], a score without a value; None for none.

        Raises:
            MemoryError: if the memory for the scores is missing.
        """
        call, (keys, values), dtype = self._call, cached, query.dtype
        query, (_, call.query_head, call.query_row, _) = _strided(query, dtype)
        key, (_, call.key_head, call.key_row, _) = _strided(states[0], dtype)
        value, (_, call.value_head, call.value_row, _) = _strided(states[1], dtype)
        call.query, call.key, call.value, call.y = query.data_ptr(), key.data_ptr(), value.data_ptr(), out.data_ptr()
        call.keys, call.values = keys.data_ptr(), values.data_ptr()
        _, call.heads, _, width = query.shape
        _, call.groups, call.capacity, call.value_width = values.shape
        call.width = width
        call.window = window or 0
        call.scale = width**-0.5 if scaling is None else scaling
        call.softcap = softcap or 0.0
        sinks = None if sinks is None else sinks.float().contiguous()
        call.sinks = None if sinks is None else sinks.data_ptr()
        call.type, call.stored, call.threads = INPUT_TYPES[dtype], INPUT_TYPES[keys.dtype], torch.get_num_threads()
        if self._attend(self._address):
            raise MemoryError("no memory for the scores of attention")


def _strided(states: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Return states of a dtype, with the numbers of a head side by side, and their strides."""
    strides = states.stride()
    if strides[3] == 1 and states.dtype == dtype:
        return states, strides
    states = states.to(dtype).contiguous()
    return states, states.stride()

"""Command buffers: calls of kernels, recorded once and run again by one call of the library.

Owns the memory of the commands. Does not know which calls belong together.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch

from unspool.kernels.library import Kernels, kernels

INPUTS: Final = 4
"""Tensors that a command reads, at most. The result comes behind them."""
_PLACES: Final = INPUTS + 1
_MOST: Final = 4096
"""Commands of a buffer, at most."""


class _Head(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_int64 * _PLACES),
        ("rows", ctypes.c_int64),
        ("base", ctypes.c_int32 * _PLACES),
    ]


class CommandBuffer:
    """Recorded calls of kernels. Weights that a call reads must keep their memory."""

    def __init__(self, library: Kernels, memory: ctypes.Array[ctypes.c_char], count: int, stride: int) -> None:
        self._run, self._memory, self._count = library.functions.unspool_run, memory, count
        self._address = ctypes.addressof(memory)
        self._heads = [_Head.from_buffer(memory, number * stride) for number in range(count)]

    def addresses(self) -> list[list[int]]:
        """Return the addresses of the tensors of each call: its inputs, 0 for none, and its result."""
        return [list(head.offset) for head in self._heads]

    def move(self, places: Sequence[Sequence[tuple[int, int]]]) -> None:
        """Let each tensor of each call be at (base, offset): base is an index of `bases` in `run`; 0 for an address."""
        for head, own in zip(self._heads, places, strict=True):
            for at, (base, offset) in enumerate(own):
                head.base[at], head.offset[at] = base, offset

    def run(self, bases: Sequence[int], attention: int | None) -> None:
        """Run the calls in order.

        Args:
            bases: addresses, the first of them 0.
            attention: address of the `SlotAttention` of all calls of attention; None without such calls.

        Raises:
            IndexError: if an id names no row of its table.
            MemoryError: if memory for a call is missing.
        """
        addresses = (ctypes.c_int64 * len(bases))(*bases)
        error = self._run(self._address, self._count, addresses, attention, torch.get_num_threads())
        if error == 2:
            raise IndexError("an id names no row of its table")
        if error:
            raise MemoryError("no memory for a recorded call of a kernel")


@contextmanager
def recording() -> Iterator[list[CommandBuffer]]:
    """Run the calls of kernels in this thread as usual, and record them.

    Yields a list that holds the buffer after the context; it stays empty if there were too many calls.
    """
    library = kernels()
    assert library is not None, "the kernels are missing"
    stride = library.functions.unspool_command_bytes()
    memory = ctypes.create_string_buffer(_MOST * stride)
    found: list[CommandBuffer] = []
    library.functions.unspool_record(memory, _MOST)
    try:
        yield found
    finally:
        count = library.functions.unspool_record(None, 0)
    if count <= _MOST:
        kept = ctypes.create_string_buffer(memory.raw[: count * stride], max(1, count * stride))
        found.append(CommandBuffer(library, kept, count, stride))

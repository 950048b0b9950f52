"""Calls of kernels in memory of their own: a command buffer, with a place for each tensor that the calls compute.

Owns the check that commands alone give the results. Does not know graphs.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from unspool.kernels.commands import INPUTS, CommandBuffer
from unspool.runtimes.replay.memory_plan import Lifetime, plan_memory


class Unplannable(Exception):
    """The calls of kernels alone do not give the results of a subgraph; the message says why."""


class View(NamedTuple):
    """A result in the memory of a recorded subgraph (base 1), or in that of an input (base 2 and more).

    offset: in bytes, from the start of the base.
    """

    base: int
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]
    dtype: torch.dtype

    def of(self, memory: torch.Tensor, given: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the result: a view of an input, or a copy with the same strides."""
        if self.base > 1:
            tensor = given[self.base - 2]
            start = tensor.storage_offset() + self.offset // tensor.itemsize
            return tensor.as_strided(self.shape, self.strides, start)
        span = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.strides, strict=True))
        part = memory[self.offset : self.offset + span * self.dtype.itemsize]
        return part.clone().view(self.dtype).as_strided(self.shape, self.strides)


class RecordedCalls:
    """A recorded subgraph for inputs of some shapes and strides."""

    def __init__(self, buffer: CommandBuffer, results: Sequence[View], values: View | None, size: int) -> None:
        self._buffer, self._results, self._values, self.size = buffer, results, values, size
        self.is_trusted = False

    def run(
        self, memory: torch.Tensor, given: Sequence[torch.Tensor], attention: int | None
    ) -> tuple[tuple[torch.Tensor, ...], torch.Tensor | None]:
        """Return the results, and the values that the last layer has cached; None if it is not among the calls."""
        self._buffer.run([0, memory.data_ptr(), *(each.data_ptr() for each in given)], attention)
        results = tuple(view.of(memory, given) for view in self._results)
        return results, None if self._values is None else self._values.of(memory, given)


def plan_calls(
    buffer: CommandBuffer,
    results: Sequence[torch.Tensor],
    values: torch.Tensor | None,
    given: Sequence[torch.Tensor],
    made: Sequence[torch.Tensor],
    constants: Sequence[Any],
) -> RecordedCalls:
    """Move the commands into memory of their own.

    Each command must read an input, a constant, or the result of an earlier command. So a number that anything else
    has computed on the way, such as a copy, is found.

    Raises:
        Unplannable: if a command, or a result, needs other memory.
    """
    if len({_storage(each) for each in given}) < len(given):
        raise Unplannable("two inputs share memory")
    blocks = sorted({_storage(each) for each in made} - {_storage(each) for each in given})
    starts = [start for start, _ in blocks]
    fixed = [_storage(each) for each in constants if isinstance(each, torch.Tensor)]
    uses: dict[int, list[int]] = {}  # of a block: the commands that use it, in order

    def block_of(address: int) -> int | None:
        at = bisect_right(starts, address) - 1
        return at if at >= 0 and address < sum(blocks[at]) else None

    def place(address: int, command: int, *, is_result: bool) -> tuple[int, int]:
        """Return the base and the offset of a tensor. A block lacks its place in the memory yet: -1 - its index."""
        if (block := block_of(address)) is not None and (is_result or block in uses):
            uses.setdefault(block, []).append(command)
            return -1 - block, address - starts[block]
        for index, each in enumerate(given):
            if not is_result and _holds(_storage(each), address):
                return 2 + index, address - each.data_ptr()
        if not is_result and (not address or any(_holds(storage, address) for storage in fixed)):
            return 0, address
        raise Unplannable("a call reads a tensor that no kernel has computed")

    every = []
    for command, own in enumerate(buffer.addresses()):
        read = [place(address, command, is_result=False) for address in own[:INPUTS]]
        every.append([*read, place(own[INPUTS], command, is_result=True)])
    ends = [*results, *(() if values is None else (values,))]
    found = [place(each.data_ptr(), len(every), is_result=False) for each in ends]
    if any(base == 0 for base, _ in found):
        raise Unplannable("a result is a constant")
    order = sorted(uses, key=lambda block: uses[block][0])
    offsets, size = plan_memory([Lifetime(blocks[block][1], uses[block][0], uses[block][-1]) for block in order])
    offset_of = dict(zip(order, offsets, strict=True))

    def moved(base: int, at: int) -> tuple[int, int]:
        return (base, at) if base >= 0 else (1, offset_of[-1 - base] + at)

    buffer.move([[moved(*each) for each in own] for own in every])
    views = [
        View(*moved(*where), each.shape, each.stride(), each.dtype) for each, where in zip(ends, found, strict=True)
    ]
    return RecordedCalls(buffer, views[: len(results)], None if values is None else views[-1], size)


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address and the bytes of a tensor's memory."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _holds(storage: tuple[int, int], address: int) -> bool:
    return storage[0] <= address < storage[0] + storage[1]

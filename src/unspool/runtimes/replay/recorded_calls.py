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
from unspool.runtimes.weights.lazy_weight import LazyWeight


class Unplannable(Exception):
    """The calls of kernels alone do not give the results of a subgraph; the message says why."""


class View(NamedTuple):
    """A result: a part of an input, or of a tensor that is made for each run.

    base: index of the base, see `RecordedCalls`. offset: in bytes, from the start of the base.
    """

    base: int
    offset: int
    shape: torch.Size
    strides: tuple[int, ...]

    def of(self, base: torch.Tensor) -> torch.Tensor:
        """Return the result; its base must have its dtype."""
        if (self.offset, self.shape, self.strides) == (0, base.shape, base.stride()):
            return base
        return base.as_strided(self.shape, self.strides, base.storage_offset() + self.offset // base.itemsize)


class Made(NamedTuple):
    """A tensor that is made for each run, because a result is in it."""

    shape: Sequence[int]
    dtype: torch.dtype


class RecordedCalls:
    """A recorded subgraph for inputs of some shapes and strides.

    The bases of its tensors are, in this order: none, for constants; the memory of results that only other calls read;
    the inputs; and the tensors that are made for each run.
    """

    def __init__(
        self,
        buffer: CommandBuffer,
        results: Sequence[View],
        made: Sequence[Made],
        constants: Sequence[torch.Tensor],
        size: int,
    ) -> None:
        self._buffer, self._results, self._made, self.size = buffer, results, made, size
        self._constants = constants  # the buffer reads their memory
        self.is_trusted = False

    def run(
        self, memory: torch.Tensor, given: Sequence[torch.Tensor], attention: int | None
    ) -> tuple[torch.Tensor, ...]:
        """Return the results."""
        made = [torch.empty(shape, dtype=dtype, device="cpu") for shape, dtype in self._made]
        tensors = [memory, *given, *made]
        self._buffer.run([0, *[each.data_ptr() for each in tensors]], attention)
        return tuple([view.of(tensors[view.base - 1]) for view in self._results])


def plan_calls(
    buffer: CommandBuffer,
    results: Sequence[torch.Tensor],
    given: Sequence[torch.Tensor],
    tensors: Sequence[torch.Tensor],
    constants: Sequence[Any],
) -> RecordedCalls:
    """Move the commands into memory of their own, and their results into tensors that are made for each run.

    Args:
        results, given: of the subgraph.
        tensors: the results of all calls.
        constants: of the subgraph.

    Each command must read an input, a constant, or the result of an earlier command. So a number that anything else
    has computed on the way, such as a copy, is found.

    Raises:
        Unplannable: if a command, or a result, needs other memory.
    """
    if len({_storage(each) for each in given}) < len(given):
        raise Unplannable("two inputs share memory")
    blocks = sorted({_storage(each) for each in tensors} - {_storage(each) for each in given})
    starts = [start for start, _ in blocks]
    # A parameter can get other memory. An alias keeps the memory that the commands read.
    kept = [each.detach() for each in constants if isinstance(each, torch.Tensor) and not isinstance(each, LazyWeight)]
    fixed = [_storage(each) for each in kept]
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
    found = [place(each.data_ptr(), len(every), is_result=False) for each in results]
    if any(base == 0 for base, _ in found):
        raise Unplannable("a result is a constant")
    made = _made_for(results, found, [size for _, size in blocks])
    order = sorted(uses.keys() - made.keys(), key=lambda block: uses[block][0])
    offsets, size = plan_memory([Lifetime(blocks[block][1], uses[block][0], uses[block][-1]) for block in order])
    moved = {block: (1, offset) for block, offset in zip(order, offsets, strict=True)}
    moved |= {block: (2 + len(given) + index, 0) for index, block in enumerate(made)}

    def base_of(base: int, at: int) -> tuple[int, int]:
        if base >= 0:
            return base, at
        own, start = moved[-1 - base]
        return own, start + at

    buffer.move([[base_of(*each) for each in own] for own in every])
    views = [View(*base_of(*where), each.shape, each.stride()) for each, where in zip(results, found, strict=True)]
    return RecordedCalls(buffer, views, list(made.values()), kept, size)


def _made_for(
    results: Sequence[torch.Tensor], places: Sequence[tuple[int, int]], sizes: Sequence[int]
) -> dict[int, Made]:
    """Return, by block, the tensor that takes its place, for blocks that hold results.

    Args:
        results: of the subgraph.
        places: of the results: (base, offset); base -1 - n is the block n.
        sizes: of the blocks, in bytes.

    Raises:
        Unplannable: if results of different dtypes are in one block.
    """
    made: dict[int, Made] = {}
    for each, (base, at) in zip(results, places, strict=True):
        if base < 0:
            size = sizes[-1 - base]
            is_whole = not at and each.is_contiguous() and each.nbytes == size
            shape = each.shape if is_whole else (size // each.itemsize,)
            if made.setdefault(-1 - base, Made(shape, each.dtype)).dtype != each.dtype:
                raise Unplannable("results of different dtypes share memory")
    return made


def _storage(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the address and the bytes of a tensor's memory."""
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()


def _holds(storage: tuple[int, int], address: int) -> bool:
    return storage[0] <= address < storage[0] + storage[1]

"""Zeroed memory on the CPU that the system provides page by page when it is written, and takes back in parts.

Unwritten parts of a KV cache then cost no memory.
"""

from __future__ import annotations

import mmap
import sys
from math import prod
from typing import Final

import torch

CAN_GIVE_BACK: Final = sys.platform.startswith("linux")
"""Whether the system takes back memory that is in use, and provides zeros in its place."""


class LazyZeros:
    """A tensor of zeros on the CPU; a page of it takes memory once it is written.

    Args:
        sizes: shape, at least one number.
        dtype: of the numbers.

    Attributes:
        tensor: the numbers. It keeps the memory alive.

    Raises:
        OSError: if the system refuses the memory.
    """

    def __init__(self, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
        num_bytes = prod(sizes) * dtype.itemsize
        if sys.platform == "win32":
            self._memory = mmap.mmap(-1, num_bytes)
        else:
            # Private memory is read as zeros again after MADV_DONTNEED; shared memory would keep its contents.
            self._memory = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.tensor = torch.frombuffer(self._memory, dtype=dtype).view(sizes)

    def give_back(self, start: int, stop: int) -> None:
        """Give the whole pages of bytes [start, stop) back to the system, if it takes them.

        Linux takes them: their numbers are 0 afterwards. Other systems keep memory and numbers.
        """
        if not CAN_GIVE_BACK:
            return
        first, last = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE, stop // mmap.PAGESIZE * mmap.PAGESIZE
        if first < last:
            self._memory.madvise(mmap.MADV_DONTNEED, first, last - first)

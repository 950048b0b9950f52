"""What packed weights leave behind in memory, given back to the system while others are still being packed.

transformers maps a weights file into memory. What has been read of it counts as this process's until the file's last
tensor is gone, and embeddings stay. And the heap keeps the gaps between packed weights. Knows addresses; no layers.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

import torch

_SMAPS: Final = "/proc/self/smaps"
_MADV_DONTNEED: Final = 4
_HEAD: Final = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ \S+ \S+ (\d+)")
# To look through all mappings takes milliseconds: not before so much can be had, and some 16 times for a model.
_LEAST: Final = 64 << 20
_PARTS: Final = 16


class Leftovers:
    """Weights that have been packed and are no longer read.

    Args:
        total: bytes of all weights that are to be packed.
    """

    def __init__(self, total: int) -> None:
        self._step = max(_LEAST, total // _PARTS)
        self._addresses: list[int] = []
        self._size = 0

    def add(self, weight: torch.Tensor) -> None:
        """Note a weight that has been packed; now and then give back what has come together."""
        self._addresses.append(weight.data_ptr())
        self._size += weight.nbytes
        if self._size >= self._step:
            give_back(self._addresses)
            self._addresses, self._size = [], 0

    def close(self) -> None:
        """Give back the rest, where it is worth the while."""
        if self._size >= _LEAST:
            give_back(self._addresses)


class _Mapping(NamedTuple):
    """A part of the address space, [start, end). is_clean: it is a file's, and every page is as the file has it."""

    start: int
    end: int
    is_clean: bool


def give_back(addresses: Collection[int]) -> int:
    """Give back the mapped files in which these addresses lie, and free memory of the heap. No content is lost.

    A page that is read again comes from its file, so that only files are given back of which no page has been changed.
    Systems other than Linux, which do not say so, give nothing back.

    Returns:
        Bytes of the address space that were given back.
    """
    try:
        with open(_SMAPS, encoding="utf-8", errors="replace") as lines:
            found = list(_mappings(lines))
    except OSError:
        return 0
    libc = ctypes.CDLL(None)
    clean = [one for one in found if one.is_clean and any(one.start <= address < one.end for address in addresses)]
    for one in clean:
        libc.madvise(ctypes.c_void_p(one.start), ctypes.c_size_t(one.end - one.start), _MADV_DONTNEED)
    if hasattr(libc, "malloc_trim"):  # glibc's alone
        libc.malloc_trim(0)
    return sum(one.end - one.start for one in clean)


def _mappings(lines: Iterator[str]) -> Iterator[_Mapping]:
    """Read what the system says of each mapping: a line of addresses, then one for each figure."""
    start = end = inode = changed = 0
    for line in lines:
        if head := _HEAD.match(line):
            if end:
                yield _Mapping(start, end, bool(inode) and not changed)
            start, end, inode, changed = int(head[1], 16), int(head[2], 16), int(head[3]), 0
        elif line.startswith(("Anonymous:", "Swap:")):
            changed += int(line.split()[1])
    if end:
        yield _Mapping(start, end, bool(inode) and not changed)

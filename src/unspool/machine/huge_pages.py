"""Weights on huge pages: pages of 2 MiB instead of 4 KiB, so that the CPU translates fewer addresses.

Owns the environment variable `UNSPOOL_HUGE_PAGES`. Linux only. Elsewhere, or if the kernel refuses, memory has its
usual pages: nothing raises, and results are the same.
"""

from __future__ import annotations

import mmap
import os
import sys
from contextlib import suppress
from typing import Final

import torch

from unspool.errors import OptionError

VARIABLE: Final = "UNSPOOL_HUGE_PAGES"
"""Environment variable: 0 turns huge pages off, 1 turns them on; not set is 1."""

PAGE: Final = 2 << 20
"""Bytes of a huge page. Smaller weights have usual pages."""

_CHUNK: Final = 32 << 20
_FIRST_CHUNK: Final = 512 << 10
"""Bytes with usual pages that come first: the weights of a tiny model fit, and clearing a huge page takes longer."""
_ALIGNMENT: Final = 64


def wants_huge_pages() -> bool:
    """Return whether weights go on huge pages here: on Linux, unless `UNSPOOL_HUGE_PAGES` is 0.

    Raises:
        OptionError: if the variable is neither 0 nor 1.
    """
    given = os.environ.get(VARIABLE) or "1"
    if given not in ("0", "1"):
        raise OptionError(VARIABLE, given, "must be 0 or 1", "unset it for 1")
    return given == "1" and sys.platform == "linux" and hasattr(mmap, "MADV_HUGEPAGE")


class HugePages:
    """An allocator of tensors on huge pages, for the weights of one model.

    Tensors share chunks of memory, so that small ones waste no page. A chunk is freed with its last tensor. The first
    chunk is small and has usual pages.
    """

    def __init__(self) -> None:
        self._wants = wants_huge_pages()
        self._chunk: torch.Tensor | None = None
        self._used = self._size = 0

    def empty(self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> torch.Tensor:
        """Return a new contiguous tensor on the CPU, with undefined values."""
        with torch.inference_mode(False):  # as in `bytes`
            return self.bytes(torch.Size(shape).numel() * dtype.itemsize).view(dtype).view(shape)

    def bytes(self, size: int) -> torch.Tensor:
        """Return memory of so many bytes, aligned to 64 bytes. --> [size], uint8"""
        # A tensor made in inference mode could not be written outside of it.
        with torch.inference_mode(False):
            if not self._wants:
                return torch.empty(size, dtype=torch.uint8, device="cpu")
            if self._chunk is None or self._used + size > self._size:
                is_first = self._chunk is None and size <= _FIRST_CHUNK
                self._size, self._used = _FIRST_CHUNK if is_first else max(size, _CHUNK), 0
                self._chunk = (
                    torch.empty(self._size, dtype=torch.uint8, device="cpu") if is_first else _chunk(self._size)
                )
            start, self._used = self._used, self._used + size + -size % _ALIGNMENT
            return self._chunk[start : start + size]

    def copy(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return a contiguous copy of a tensor, on huge pages if it is large; the tensor itself without huge pages."""
        if not self._wants:
            return tensor
        if tensor.nbytes < PAGE:
            return tensor.contiguous() if not tensor.is_contiguous() else tensor.clone()
        return self.empty(tensor.shape, tensor.dtype).copy_(tensor)


def _chunk(size: int) -> torch.Tensor:
    """Return memory at the start of a huge page. The advice comes before the first write. --> [size], uint8"""
    memory = mmap.mmap(-1, size + PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    start = -whole.data_ptr() % PAGE
    return whole[start : start + size]

"""How fast this machine reads memory: the yardstick of every other figure.

The memory is on huge pages where the kernel gives them, as the weights of Unspool are; `load` names the pages. The
loop is that of the kernel library, in each of its numbers of streams, or else a dot product of a vector with itself.
"""

from __future__ import annotations

import ctypes
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.sides.side import Run
from benchmarks.work import Work
from unspool.kernels.library import kernels
from unspool.kernels.packed import STREAMS, set_streams
from unspool.machine.huge_pages import HugePages

_TRIES = 5
_ROLLUP = Path("/proc/self/smaps_rollup")


class Bandwidth:
    """Reads a vector that no cache can hold. parts: `bytes_per_second`, the best of a few readings."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._threads = threads
        self._vector = torch.empty(0)

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        before = _bytes_on_huge_pages()
        self._vector = HugePages().empty((int(options["bytes"]) // 4,), torch.float32).fill_(1.0)
        is_huge = _bytes_on_huge_pages() - before > 0.9 * self._vector.nbytes
        self._read()
        loop = "dot products" if kernels() is None else "readings"
        pages = "2 MiB" if is_huge else "the usual size"
        return f"the best of {_TRIES} {loop} of a float32 vector of {self._vector.nbytes >> 20} MiB on pages of {pages}"

    def run(self, work: Work) -> Run:
        best = min(self._seconds(streams) for _ in range(_TRIES) for streams in STREAMS)
        return Run(parts={"bytes_per_second": self._vector.nbytes / best})

    def _seconds(self, streams: int) -> float:
        if kernels() is not None:
            set_streams(streams)
        started = time.perf_counter()
        self._read()
        return time.perf_counter() - started

    def _read(self) -> None:
        library = kernels()
        if library is None:
            torch.dot(self._vector, self._vector)
        else:
            address, count = ctypes.c_void_p(self._vector.data_ptr()), ctypes.c_int64(self._vector.numel())
            library.functions.unspool_read(address, count, self._threads)

    def versions(self) -> Mapping[str, str]:
        return {"torch": torch.__version__}


def _bytes_on_huge_pages() -> int:
    """Return the bytes of this process on huge pages; 0 if the system does not tell."""
    found = re.search(r"AnonHugePages:\s+(\d+) kB", _ROLLUP.read_text()) if _ROLLUP.exists() else None
    return int(found[1]) * 1024 if found else 0


make = Bandwidth

"""How fast this machine reads memory: the yardstick of every other figure.

A dot product of a vector with itself reads each number once and stores nothing; of the reductions in torch it is the
one that reads fastest.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.sides.side import Run
from benchmarks.work import Work

_TRIES = 5


class Bandwidth:
    """Reads a vector that no cache can hold. parts: `bytes_per_second`, the best of a few readings."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._vector = torch.empty(0)

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        self._vector = torch.ones(int(options["bytes"]) // 4)
        torch.dot(self._vector, self._vector)
        return f"the best of {_TRIES} dot products of a float32 vector of {int(options['bytes']) >> 20} MiB with itself"

    def run(self, work: Work) -> Run:
        best = min(self._seconds() for _ in range(_TRIES))
        return Run(parts={"bytes_per_second": self._vector.nbytes / best})

    def _seconds(self) -> float:
        started = time.perf_counter()
        torch.dot(self._vector, self._vector)
        return time.perf_counter() - started

    def versions(self) -> Mapping[str, str]:
        return {"torch": torch.__version__}


make = Bandwidth

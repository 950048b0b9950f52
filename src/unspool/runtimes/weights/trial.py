"""The trial of a linear layer: the time of each form for few and for many rows, with a weight that no cache holds.

Owns the timing. Does not know how the times are judged and kept (autotune.py, tuning_file.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F

from unspool.kernels.packed import STREAMS, PackedWeight, linear, set_streams
from unspool.machine.huge_pages import HugePages
from unspool.machine.memory import available_memory
from unspool.tuning import BUSY_MACHINE, LARGEST_CPU_CACHE, TRIAL_ROUNDS, TRIAL_ROWS, USUAL_CPU_CACHE

Form: TypeAlias = Literal["plain", "native"]
"""plain: as PyTorch stores a weight, and multiplied by it. native: packed for our kernels."""

Times: TypeAlias = "dict[Form, tuple[float, ...]]"
"""Seconds of each form, one number per entry of `TRIAL_ROWS`."""

Clock: TypeAlias = Callable[[], float]
Product: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
_SHARE_OF_MEMORY: Final = 8
_TINY: Final = 32
"""Sides of a weight that is so small that its product takes only the time of a call."""

_WIDTH: Final = 2048
_HEIGHT: Final = 4096
"""The sides of a weight that is read in different numbers of streams, and the rows."""
_STREAM_ROWS: Final = (1, 5)


class Shape(NamedTuple):
    """The properties of a layer that its speed depends on."""

    in_features: int
    out_features: int
    dtype: torch.dtype
    threads: int

    def __str__(self) -> str:
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        return f"{self.in_features} x {self.out_features}, {str(self.dtype).removeprefix('torch.')}, {threads}"


class Trial:
    """Times the forms of layers. Its memory, as large as the last-level cache, is freed with it.

    Args:
        clock: returns seconds.

    Attributes:
        readings: seconds of each reading of other memory. All take equally long on an idle machine.
        cpu_seconds: seconds of these readings in which this thread ran; the others went to other programs.
    """

    def __init__(self, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self.readings: list[float] = []
        self.cpu_seconds: list[float] = []
        size = min(last_level_cache(), (available_memory() or 1 << 40) // _SHARE_OF_MEMORY)
        # Not zeros, which the system need not hold in memory.
        self._filler = torch.ones(max(1, size // 4), dtype=torch.float32, device="cpu")

    @torch.no_grad()
    def times(self, shape: Shape, *, until: float = float("inf")) -> Times:
        """Return the shortest time of each form for each number of rows.

        Args:
            shape: of the layer; weights of its dtype can be packed.
            until: no round begins after this time of the clock, except the first.
        """
        generator, pages = torch.Generator("cpu").manual_seed(0), HugePages()
        plain = pages.empty((shape.out_features, shape.in_features), shape.dtype)
        plain.uniform_(-1, 1, generator=generator)
        packed = PackedWeight(plain, allocate=pages.bytes)
        tiny = PackedWeight(torch.ones(_TINY, _TINY, dtype=shape.dtype, device="cpu"))
        row = torch.ones(1, _TINY, dtype=shape.dtype, device="cpu")

        def parted(rows: torch.Tensor) -> torch.Tensor:
            """Multiply by the plain weight, and call the kernels once more: a plain layer parts a command buffer."""
            result = F.linear(rows, plain)
            linear(row, tiny)
            return result

        # The order counts: in a command buffer, too, a native product follows another call of the kernels.
        products: dict[Form, Product] = {"plain": parted, "native": lambda rows: linear(rows, packed)}
        inputs = [
            torch.empty(rows, shape.in_features, dtype=shape.dtype, device="cpu").uniform_(-1, 1, generator=generator)
            for rows in TRIAL_ROWS
        ]
        best = {form: [float("inf")] * len(inputs) for form in products}
        for number in range(TRIAL_ROUNDS):
            if number and self._clock() >= until:
                break
            for index, rows in enumerate(inputs):
                self._empty_caches()
                for form, product in products.items():
                    best[form][index] = min(best[form][index], self._seconds(product, rows))
        return {form: tuple(found) for form, found in best.items()}

    @torch.no_grad()
    def streams(self) -> dict[int, float]:
        """Return the seconds of products of 1 and of 5 rows for each number of streams. The last one is in use then."""
        ones = torch.ones(_HEIGHT, _WIDTH, dtype=torch.float32, device="cpu")
        weight = PackedWeight(ones, allocate=HugePages().bytes)
        found = dict.fromkeys(STREAMS, 0.0)
        for rows in _STREAM_ROWS:
            inputs, best = torch.ones(rows, _WIDTH, dtype=torch.float32, device="cpu"), dict.fromkeys(STREAMS, math.inf)
            for _ in range(TRIAL_ROUNDS):
                for count in STREAMS:
                    set_streams(count)
                    self._empty_caches()
                    best[count] = min(best[count], self._seconds(lambda x: linear(x, weight), inputs))
            found = {count: found[count] + best[count] for count in STREAMS}
        return found

    def _empty_caches(self) -> None:
        """Read other memory, so that the next product reads its weight from memory, as a decode step does."""
        ran, started = time.thread_time(), self._clock()
        self._filler.sum()
        self.readings.append(self._clock() - started)
        self.cpu_seconds.append(time.thread_time() - ran)

    @property
    def was_disturbed(self) -> bool:
        """Return whether other programs took so much time that the times can be wrong."""
        if not self.readings:
            return False
        ordered = sorted(self.readings)
        uneven = ordered[len(ordered) // 2] > BUSY_MACHINE * ordered[0]
        return uneven or sum(self.readings) > BUSY_MACHINE * sum(self.cpu_seconds)

    def _seconds(self, product: Product, rows: torch.Tensor) -> float:
        started = self._clock()
        product(rows)
        return self._clock() - started


@cache
def last_level_cache(folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Return the bytes of the CPU's largest cache, at most 512 MiB; 32 MiB if the system does not tell."""
    sizes = [USUAL_CPU_CACHE]
    with suppress(OSError, ValueError):
        sizes = [int(file.read_text().strip().removesuffix("K")) << 10 for file in folder.glob("index*/size")] or sizes
    return min(max(sizes), LARGEST_CPU_CACHE)

"""A table of kernels: how fast each product of few rows reads its weight, beside the read bandwidth of the same minute.

python -m benchmarks.kernels                                     # two minutes on two cores
python -m benchmarks.kernels --shapes 768x3072 --types int8 int4 --rows 1 5 16

Weights are cold: each product has another copy, and the copies are a gigabyte. All lie on huge pages.
Times are the shortest of some passes over the copies. The yardstick is the sum of 1 GB, before the passes or
after them, in each way that our kernels can read; the fastest reading counts.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import torch

from benchmarks.machine import cpu_name
from unspool.kernels.library import kernels, obstacle
from unspool.kernels.packed import STREAMS, PackedWeight, linear, set_streams
from unspool.machine.huge_pages import HugePages
from unspool.runtimes.weights.autotune import choose_streams

SHAPES: Final = ("768x3072", "2048x5632", "768x50257")
TYPES: Final = ("float32", "bfloat16", "int8", "int4")
ROWS: Final = (1, 5, 16)
_PASSES: Final = 4
_COPIES: Final = 1 << 30
_YARDSTICK: Final = 1 << 30
_GROUP: Final = 32
_PACK_ROWS: Final = 16
_MADV_COLLAPSE: Final = 25


class Product(NamedTuple):
    """One weight of a kernel. nbytes: of the weight, read once per call."""

    times: Callable[[torch.Tensor], torch.Tensor]
    nbytes: int


class Kernel(NamedTuple):
    """A kernel of the table. dtype: of its inputs. make: returns a product with a new weight [outputs, inputs]."""

    label: str
    dtype: torch.dtype
    make: Callable[[int, int, HugePages], Product]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="inputs x outputs, such as 768x3072")
    parser.add_argument("--types", nargs="+", choices=TYPES, default=TYPES, help="types of the weight")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="rows of the inputs")
    options = parser.parse_args(arguments)
    if kernels() is None:
        print(f"Without kernels of Unspool: {obstacle()}")
    with torch.inference_mode():
        for line in table(options.shapes, options.types, options.rows):
            print(line, flush=True)


def table(shapes: Sequence[str], types: Sequence[str], rows: Sequence[int]) -> Iterator[str]:
    """Yield the lines of the table in Markdown."""
    library, threads = kernels(), torch.get_num_threads()
    level = library.level if library else "none"
    yield f"{cpu_name()}, {threads} threads, kernels: {level}, PyTorch {torch.__version__}"
    yield ""
    heads = " | ".join("1 row" if count == 1 else f"{count} rows" for count in rows)
    yield f"| Weight | Kernel | {heads} | Read loop, GB/s |"
    yield f"|---|---|{'---|' * len(rows)}---|"
    yardstick = Yardstick()
    for shape in shapes:
        inputs, outputs = map(int, shape.split("x"))
        for kind in types:
            for kernel in _kernels(kind):
                before = yardstick.speed()
                seconds, nbytes = measure(kernel, inputs, outputs, rows)
                bandwidth = max(before, yardstick.speed())
                cells = [f"{nbytes / each / bandwidth:.0%}, {each * 1e6:.0f} µs" for each in seconds]
                yield f"| {shape} {kind} | {kernel.label} | {' | '.join(cells)} | {bandwidth / 1e9:.1f} |"


def measure(kernel: Kernel, inputs: int, outputs: int, rows: Sequence[int]) -> tuple[list[float], int]:
    """Return the seconds of one product for each number of rows, and the bytes of the weight."""
    pages = HugePages()
    first = kernel.make(outputs, inputs, pages)
    count = max(2, _COPIES // first.nbytes)
    products = [first, *(kernel.make(outputs, inputs, pages) for _ in range(count - 1))]
    found = []
    for number in rows:
        given = torch.randn(number, inputs).to(kernel.dtype)
        best = float("inf")
        for _ in range(_PASSES):
            started = time.perf_counter()
            for product in products:
                product.times(given)
            best = min(best, time.perf_counter() - started)
        found.append(best / count)
    return found, first.nbytes


class Yardstick:
    """Reads memory on huge pages."""

    def __init__(self) -> None:
        self._memory = HugePages().empty((_YARDSTICK // 4,), torch.float32)
        self._memory.fill_(1.0)

    def speed(self) -> float:
        """Return the largest speed of some passes, in bytes per second."""
        library, best = kernels(), float("inf")
        for streams in (*STREAMS, *STREAMS, *STREAMS):
            if library is not None:
                set_streams(streams)
            started = time.perf_counter()
            if library is None:
                self._memory.sum()
            else:
                library.functions.unspool_read(self._memory.data_ptr(), self._memory.numel(), torch.get_num_threads())
            best = min(best, time.perf_counter() - started)
        choose_streams()
        return self._memory.nbytes / best


def _kernels(kind: str) -> list[Kernel]:
    """Return the kernels for a type of weight: ours first, if they run here."""
    if kind in ("float32", "bfloat16"):
        dtype: torch.dtype = getattr(torch, kind)
        others = [
            Kernel("`F.linear`", dtype, lambda n, k, pages: _plain(n, k, pages, dtype)),
            Kernel("oneDNN, packed", dtype, lambda n, k, pages: _onednn(n, k, pages, dtype)),
        ]
    else:
        dtype = torch.float32
        make = _torch_int8 if kind == "int8" else _torch_int4
        name = "_weight_int8pack_mm" if kind == "int8" else "_weight_int4pack_mm_for_cpu"
        others = [Kernel(f"`{name}`", torch.bfloat16, make)]
    ours = [Kernel("Unspool", dtype, lambda n, k, pages: _own(n, k, pages, kind))] if kernels() else []
    return ours + others


def _own(outputs: int, inputs: int, pages: HugePages, kind: str) -> Product:
    scales = None
    if kind == "int8":
        numbers, scales = torch.ones(outputs, inputs, dtype=torch.int8), torch.ones(outputs)
    elif kind == "int4":
        numbers = torch.ones(outputs, inputs, dtype=torch.uint8)
        scales = torch.ones(inputs // _GROUP, outputs, 2, dtype=torch.bfloat16)
    else:
        numbers = torch.ones(outputs, inputs, dtype=getattr(torch, kind))
    packed = PackedWeight(numbers, scales=scales, allocate=pages.bytes)
    return Product(lambda x: linear(x, packed), packed.memory.nbytes)


def _plain(outputs: int, inputs: int, pages: HugePages, dtype: torch.dtype) -> Product:
    weight = pages.empty((outputs, inputs), dtype).fill_(1.0)
    return Product(lambda x: torch.nn.functional.linear(x, weight), weight.nbytes)


def _onednn(outputs: int, inputs: int, pages: HugePages, dtype: torch.dtype) -> Product:
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(torch.ones(outputs, inputs, dtype=dtype), _PACK_ROWS)
    _collapse(ops.data_ptr(packed), ops._nbytes(packed))
    multiply = ops._linear_pointwise
    return Product(lambda x: multiply(x, packed, None, "none", [], ""), outputs * inputs * dtype.itemsize)


def _torch_int8(outputs: int, inputs: int, pages: HugePages) -> Product:
    numbers = pages.empty((outputs, inputs), torch.int8).fill_(1)
    scales = torch.ones(outputs, dtype=torch.bfloat16)
    return Product(lambda x: torch.ops.aten._weight_int8pack_mm(x, numbers, scales), numbers.nbytes)


def _torch_int4(outputs: int, inputs: int, pages: HugePages) -> Product:
    rounded = outputs + -outputs % 64
    numbers = torch.ones(rounded, inputs, dtype=torch.int32)
    packed: Any = torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1)
    _collapse(packed.data_ptr(), packed.nbytes)
    scales = torch.ones(inputs // _GROUP, rounded, 2, dtype=torch.bfloat16)
    multiply = torch.ops.aten._weight_int4pack_mm_for_cpu
    return Product(lambda x: multiply(x, packed, _GROUP, scales), packed.nbytes + scales.nbytes)


def _collapse(address: int, size: int) -> None:
    """Move memory that PyTorch has allocated to huge pages, if the kernel of Linux does that (6.1 and later)."""
    start, end = address + -address % mmap.PAGESIZE, (address + size) // mmap.PAGESIZE * mmap.PAGESIZE
    ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_COLLAPSE)


if __name__ == "__main__":
    main()

"""Runs code on each instruction set of this CPU, with several numbers of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import pytest
import torch

from unspool.kernels.build import LEVELS, machine
from unspool.kernels.library import VARIABLE, kernels
from unspool.kernels.packed import set_streams

HERE = list(LEVELS.get(machine(), ()))
"""The names of the instruction sets that tests go through."""


@contextmanager
def num_threads(count: int) -> Iterator[None]:
    """Let PyTorch and the kernels use so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def num_streams(count: int) -> Iterator[None]:
    """Let products read weights in so many streams."""
    set_streams(count)
    try:
        yield
    finally:
        set_streams(1)


def everywhere(monkeypatch: pytest.MonkeyPatch, run: Callable[[], Iterable[torch.Tensor]]) -> list[torch.Tensor]:
    """Return the results of `run` on each instruction set of this CPU, with one thread and with three."""
    found: list[torch.Tensor] = []
    for name in HERE:
        monkeypatch.setenv(VARIABLE, name)
        if kernels() is None:
            continue
        for threads in (1, 3):
            with num_threads(threads):
                found += run()
    assert len(found) >= 2, "no instruction set runs here"
    return found

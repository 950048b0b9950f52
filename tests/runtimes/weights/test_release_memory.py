"""Free heap memory goes back to the system after weights are packed or quantized."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from unspool.runtimes.quantized import quantize
from unspool.runtimes.quantized.quantize import quantize_linears
from unspool.runtimes.weights import packed_linear
from unspool.runtimes.weights.packed_linear import pack_linears
from unspool.runtimes.weights.release_memory import trim_heap

HAS_TRIM = sys.platform.startswith("linux") and hasattr(ctypes.CDLL(None), "malloc_trim")


def resident() -> int:
    """Return how many bytes of this process are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not HAS_TRIM, reason="needs glibc")
def test_gaps_between_live_blocks_go_back_to_the_system() -> None:
    blocks = [torch.ones(8192) for _ in range(2048)]  # 32 KiB each, 64 MiB together
    kept = blocks[::8]
    del blocks
    before = resident()
    trim_heap()
    assert before - resident() >= 48 << 20
    assert all(bool((block == 1).all()) for block in kept)


@pytest.fixture
def trims(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    calls: list[str] = []
    for module in (packed_linear, quantize):
        monkeypatch.setattr(module, "trim_heap", partial(calls.append, module.__name__))
    return calls


def test_the_heap_is_trimmed_once_after_quantizing(trims: list[str]) -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model.get_output_embeddings = lambda: None  # type: ignore[assignment]
    assert quantize_linears(model, "int8") == 2
    assert trims == [quantize.__name__]


@pytest.mark.usefixtures("packed_layers")
@pytest.mark.parametrize("keep", [False, True])
def test_the_heap_is_trimmed_after_packing_if_plain_weights_were_freed(trims: list[str], keep: bool) -> None:
    assert pack_linears(nn.Sequential(nn.Linear(384, 384)), keep=keep).packed == 1
    assert trims == ([] if keep else [packed_linear.__name__])

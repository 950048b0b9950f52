"""Memory that takes room once it is written: its numbers, and the resident memory of the process on Linux."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest
import torch

from unspool.runtimes.kv.lazy_memory import CAN_GIVE_BACK, LazyZeros

STATUS = Path("/proc/self/status")
MIB = 1 << 20


def resident() -> int:
    """Return the resident bytes of this process."""
    found = re.search(r"^VmRSS:\s+(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_are_zero_and_can_be_written(dtype: torch.dtype) -> None:
    memory = LazyZeros((3, 5, 7), dtype)
    assert memory.tensor.shape == (3, 5, 7) and memory.tensor.dtype == dtype and not memory.tensor.any()
    memory.tensor[1] = 2
    assert memory.tensor.sum() == 70


def test_a_tensor_outlives_its_owner() -> None:
    tensor = LazyZeros((1000, 1000), torch.float32).tensor[500:]
    tensor += 1
    assert tensor.sum() == 500_000


@pytest.mark.skipif(not CAN_GIVE_BACK, reason="this system keeps memory that is given back")
def test_whole_pages_given_back_are_zero_again_and_all_others_stay() -> None:
    page = mmap.PAGESIZE
    memory = LazyZeros((8 * page,), torch.uint8)
    memory.tensor.fill_(1)
    memory.give_back(100, 200)
    assert memory.tensor.all()
    memory.give_back(page + 1, 3 * page + 1)
    assert memory.tensor.view(8, page).any(1).tolist() == [True, True, False, True, True, True, True, True]
    assert memory.tensor.sum() == 7 * page
    memory.give_back(0, 8 * page)
    assert not memory.tensor.any()


@pytest.mark.skipif(not (CAN_GIVE_BACK and STATUS.exists()), reason="resident memory is read as Linux reports it")
def test_unwritten_and_given_back_memory_is_not_resident() -> None:
    before = resident()
    memory = LazyZeros((256, MIB), torch.uint8)
    assert resident() - before < 64 * MIB
    memory.tensor[:128] = 1
    assert 112 * MIB < resident() - before < 192 * MIB
    memory.give_back(0, 128 * MIB)
    assert resident() - before < 64 * MIB

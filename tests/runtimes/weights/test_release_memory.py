"""Memory given back while a model is packed: nothing is lost, whatever the pages are."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import pytest
import torch

from unspool.runtimes.weights import release_memory as leftovers
from unspool.runtimes.weights.release_memory import Leftovers, give_back

COUNT = 1 << 20

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux says which pages have changed")


def mapped(path: Path) -> torch.Tensor:
    """Return a tensor over a file that is mapped into memory, as safetensors makes them, all of it read."""
    torch.arange(COUNT, dtype=torch.float32).numpy().tofile(path)
    storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=COUNT * 4)
    tensor = torch.empty(0).set_(storage)
    assert tensor.sum() > 0
    return tensor


def resident(tensor: torch.Tensor) -> int:
    """Return how many bytes of the mapping that holds the tensor are in memory on this process's account."""
    found = False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace").splitlines():
        if "-" in (head := line.split(" ", 1)[0]):
            start, end = (int(part, 16) for part in head.split("-"))
            found = start <= tensor.data_ptr() < end
        elif found and line.startswith("Rss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the tensor lies nowhere")


def test_a_mapped_file_is_given_back_and_read_again_when_it_is_wanted(tmp_path: Path) -> None:
    tensor = mapped(tmp_path / "weights")
    assert resident(tensor) >= COUNT * 4
    assert give_back([tensor.data_ptr() + 4096]) >= COUNT * 4
    assert resident(tensor) == 0
    assert torch.equal(tensor, torch.arange(COUNT, dtype=torch.float32))


def test_a_mapped_file_that_was_written_to_is_kept(tmp_path: Path) -> None:
    tensor = mapped(tmp_path / "weights")
    tensor[COUNT // 2] = -1
    assert give_back([tensor.data_ptr()]) == 0
    assert tensor[COUNT // 2] == -1


def test_memory_that_belongs_to_no_file_is_kept() -> None:
    tensor = torch.arange(4 * COUNT)
    assert give_back([tensor.data_ptr()]) == 0
    assert torch.equal(tensor, torch.arange(4 * COUNT))


def test_other_mappings_are_left_alone(tmp_path: Path) -> None:
    one, other = mapped(tmp_path / "one"), mapped(tmp_path / "other")
    give_back([one.data_ptr()])
    assert (resident(one), resident(other)) == (0, COUNT * 4)


def test_a_system_that_does_not_say_what_has_changed_gives_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensor = mapped(tmp_path / "weights")
    monkeypatch.setattr(leftovers, "_SMAPS", str(tmp_path / "no such file"))
    monkeypatch.setattr(ctypes, "CDLL", None)
    assert give_back([tensor.data_ptr()]) == 0


def test_it_is_done_in_a_few_portions_and_not_for_small_models(monkeypatch: pytest.MonkeyPatch) -> None:
    portions: list[int] = []
    monkeypatch.setattr(leftovers, "give_back", lambda addresses: portions.append(len(addresses)))
    weight = torch.empty(1 << 20, dtype=torch.int64, device="meta")  # 8 MiB, and no memory

    def pack(count: int) -> list[int]:
        portions.clear()
        kept = Leftovers(count * weight.nbytes)
        for _ in range(count):
            kept.add(weight)
        kept.close()
        return list(portions)

    assert pack(7) == []
    assert pack(8) == [8]
    assert pack(20) == [8, 8]
    assert pack(24) == [8, 8, 8]
    assert len(pack(1000)) == 16

"""Memory that a process can still use: the least of the system's, the control group's and the address space's."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from unspool.machine import cgroups, memory

GB = 1 << 30


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 8 GB available, no control group and no limit on the address space."""
    (tmp_path / "meminfo").write_text("MemTotal: 16777216 kB\nMemAvailable:    8388608 kB\nCached: 1 kB\n")
    (tmp_path / "statm").write_text("262144 1000 10 1 0 900 0\n")
    monkeypatch.setattr(memory, "_MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_OWN_PAGES", tmp_path / "statm")
    monkeypatch.setattr(cgroups, "_OWN_CGROUPS", tmp_path / "own")
    monkeypatch.setattr(cgroups, "_CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "getpagesize", lambda: 4096)
    return tmp_path


def test_the_system_says_what_is_available(machine: Path) -> None:
    assert memory.available_memory() == memory.free_memory(torch.device("cpu")) == 8 * GB


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"memory.max": f"{4 * GB}", "memory.current": f"{GB}"}, 3 * GB),
        ("0::/\n", {"memory.max": "max", "memory.current": f"{GB}"}, 8 * GB),
        ("0::/\n", {"memory.max": f"{GB}", "memory.current": f"{2 * GB}"}, 0),
        (
            "0::/\n",
            {"memory.max": f"{2 * GB}", "memory.current": f"{GB}", "memory.stat": f"anon 5\ninactive_file {GB // 2}\n"},
            3 * GB // 2,
        ),
        (
            "0::/a/b\n",
            {"a/b/memory.max": "max", "a/b/memory.current": "5", "a/memory.max": f"{GB}", "a/memory.current": "0"},
            GB,
        ),
        ("4:memory:/a\n", {"memory/a/memory.limit_in_bytes": f"{GB}", "memory/a/memory.usage_in_bytes": "0"}, GB),
        (
            "4:memory:/\n",
            {"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "0"},
            8 * GB,
        ),
        ("4:cpu:/\n", {"memory/memory.limit_in_bytes": "1", "memory/memory.usage_in_bytes": "0"}, 8 * GB),
    ],
)  # fmt: skip
def test_a_control_group_bounds_it(machine: Path, own: str, files: dict[str, str], expected: int) -> None:
    (machine / "own").write_text(own)
    for name, text in files.items():
        path = machine / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert memory.available_memory() == expected


def test_the_address_space_bounds_it(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """262,144 pages of 4 KiB are in use: 1 GB."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (3 * GB, 3 * GB))
    assert memory.available_memory() == 2 * GB


def test_where_the_system_says_nothing_half_of_the_physical_memory_counts(
    machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (machine / "meminfo").write_text("")
    monkeypatch.setattr(memory.os, "sysconf", {"SC_PHYS_PAGES": 1 << 20, "SC_PAGE_SIZE": 4096}.__getitem__)
    assert memory.available_memory() == 2 * GB


def test_a_device_that_says_nothing_has_no_free_memory(machine: Path) -> None:
    assert memory.free_memory(torch.device("meta")) is None

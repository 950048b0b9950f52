"""CPUs that a process can use, and when PyTorch's thread count is lowered to them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from unspool.machine import cgroups, threads


@pytest.fixture(autouse=True)
def unsettled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process in which nothing has set the thread count yet; what the test sets is set back."""
    before = torch.get_num_threads()
    monkeypatch.setattr(threads, "_is_settled", False)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    yield
    torch.set_num_threads(before)


def make_cgroups(root: Path, own: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "own").write_text(own)
    for name, text in files.items():
        path = root / "cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setattr(cgroups, "_OWN_CGROUPS", root / "own")
    monkeypatch.setattr(cgroups, "_CGROUPS", root / "cgroup")
    monkeypatch.setattr(threads, "_affinity", lambda: set(range(16)))


@pytest.mark.parametrize(
    ("own", "files", "expected"),
    [
        ("0::/\n", {"cpu.max": "400000 100000\n"}, 4),
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "3200000 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "350000 100000\n"}, 3),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000", "cpu.max": "max 100000"}, 2),
        ("0::/not/visible/here\n", {"cpu.max": "600000 100000"}, 6),
        ("3:cpu,x:/a\n", {"cpu,x/a/cpu.cfs_quota_us": "500000", "cpu,x/a/cpu.cfs_period_us": "100000"}, 5),
        ("1:cpu:/\n0::/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 16),
        ("2:cpuset:/a\n1:cpu:/gone\n", {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        ("1:cpu:/\n0::/\n", {"unified/cpu.max": "700000 100000"}, 7),
        ("0::/a:b\n", {"a:b/cpu.max": "800000 100000"}, 8),
        ("", {}, 16),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
    ],
)  # fmt: skip
def test_a_quota_of_the_control_group_bounds_the_usable_cpus(
    own: str, files: dict[str, str], expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cgroups(tmp_path, own, files, monkeypatch)
    assert threads.usable_cpus() == expected


def test_without_any_files_of_control_groups_the_affinity_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "_OWN_CGROUPS", tmp_path / "absent")
    assert threads.usable_cpus() == len(threads._affinity())
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    assert threads.usable_cpus() == os.cpu_count()


def machine(monkeypatch: pytest.MonkeyPatch, *, default: int, usable: int) -> None:
    monkeypatch.setattr(threads, "_default_counts", lambda: {default})
    monkeypatch.setattr(threads, "usable_cpus", lambda: usable)


def test_the_default_is_lowered_to_the_usable_cpus_and_never_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, default=4, usable=2)
    torch.set_num_threads(4)
    threads.limit_threads()
    assert torch.get_num_threads() == 2
    monkeypatch.setattr(threads, "_is_settled", False)
    machine(monkeypatch, default=2, usable=8)
    threads.limit_threads()
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_an_environment_variable_is_the_users_choice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, default=4, usable=2)
    torch.set_num_threads(4)
    monkeypatch.setenv(name, "4")
    threads.limit_threads()
    assert torch.get_num_threads() == 4


def test_a_count_that_is_not_the_default_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, default=4, usable=2)
    torch.set_num_threads(3)
    threads.limit_threads()
    assert torch.get_num_threads() == 3


def test_a_count_is_lowered_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, default=4, usable=2)
    threads.limit_threads()
    torch.set_num_threads(4)
    threads.limit_threads()
    assert torch.get_num_threads() == 4


def test_set_threads_is_the_users_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, default=4, usable=2)
    threads.set_threads(4)
    threads.limit_threads()
    assert torch.get_num_threads() == 4


def test_the_defaults_are_the_cpus_and_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four CPUs exist, two threads per core; the process can use CPUs 0 and 1, both of core 0."""
    for cpu in range(4):
        (tmp_path / f"cpu{cpu}").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    monkeypatch.setattr(threads, "_SIBLINGS", str(tmp_path / "cpu{}"))
    monkeypatch.setattr(threads, "_affinity", lambda: {0, 1})
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert threads._default_counts() == {1, 2, 4}


def test_load_limits_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    import unspool
    from tests.tiny_models import tiny_model

    machine(monkeypatch, default=4, usable=2)
    torch.set_num_threads(4)
    unspool.load(tiny_model("gpt2"))
    assert torch.get_num_threads() == 2

"""How many CPUs this process can use, and PyTorch's thread count.

Owns: CPU affinity and the CPU quota of the control group (cgroup v1 and v2). Does not know: the work of the threads.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from unspool.machine.cgroups import groups, read

_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_SIBLINGS: Final = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"

_is_settled = False


def usable_cpus() -> int:
    """Return the number of CPUs that this process can use, at least 1.

    This is the smaller one of the CPU affinity and the CPU quota of the control group, rounded down.
    """
    quota = _cpu_quota()
    allowed = len(_affinity())
    return allowed if quota is None else max(1, min(allowed, int(quota)))


def set_threads(count: int) -> None:
    """Set PyTorch's thread count to the user's choice; `limit_threads` does not change it afterwards.

    Args:
        count: number of threads of the whole process, at least 1.
    """
    import torch

    global _is_settled
    _is_settled = True
    torch.set_num_threads(count)


def limit_threads() -> None:
    """Lower PyTorch's thread count to `usable_cpus()`, once per process.

    The count is never raised. A count that the user has chosen stays: by an environment variable, by `set_threads`, or
    by `torch.set_num_threads` with another number than PyTorch's own default.
    """
    import torch

    global _is_settled
    if _is_settled:
        return
    _is_settled = True
    count, usable = torch.get_num_threads(), usable_cpus()
    if any(os.environ.get(name) for name in _VARIABLES) or count not in _default_counts():
        return
    if count > usable:
        torch.set_num_threads(usable)


def _affinity() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _default_counts() -> set[int]:
    """Return the counts that PyTorch chooses by itself: the number of logical CPUs or of cores, allowed or existing."""
    allowed, existing = _affinity(), set(range(os.cpu_count() or 1))
    return {count for cpus in (allowed, existing) for count in (len(cpus), _count_cores(cpus))}


def _count_cores(cpus: set[int]) -> int:
    """Return the number of physical cores; without a description of the CPUs, the number of logical ones."""
    return len({read(Path(_SIBLINGS.format(cpu))) or str(cpu) for cpu in cpus})


def _cpu_quota() -> float | None:
    """Return the CPU quota in CPUs, the smallest of this control group and its parents; None without a quota."""
    return min(_quotas(), default=None)


def _quotas() -> Iterator[float]:
    for folder, is_v2 in groups("cpu"):
        if is_v2:
            yield from _ratio(read(folder / "cpu.max").split())
        else:
            yield from _ratio([read(folder / "cpu.cfs_quota_us"), read(folder / "cpu.cfs_period_us")])


def _ratio(words: list[str]) -> Iterator[float]:
    """Yield quota / period; nothing for "max", -1, or files that are absent."""
    if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]) > 0:
        yield int(words[0]) / int(words[1])

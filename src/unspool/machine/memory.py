"""How many bytes of memory this process can still use.

Owns: free memory of the system, limits of the control group (cgroup v1 and v2), RLIMIT_AS, memory of a device.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from unspool.machine.cgroups import groups, read

if TYPE_CHECKING:
    import torch

_MEMORY: Final = Path("/proc/meminfo")
_OWN_PAGES: Final = Path("/proc/self/statm")


def available_memory() -> int | None:
    """Return the bytes of main memory that this process can use without swapping; None if nothing tells.

    This is the least of the system's available memory, the room in the control group and the room under RLIMIT_AS.
    Without /proc/meminfo, half of the physical memory stands for the system's.
    """
    return min((max(0, room) for room in (*_of_system(), *_of_groups(), *_of_address_space())), default=None)


def free_memory(device: torch.device) -> int | None:
    """Return the free bytes of a device's memory; None if nothing tells."""
    if device.type == "cpu":
        return available_memory()
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    return None


def _of_system() -> Iterator[int]:
    for line in read(_MEMORY).splitlines():
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024
            return
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def _of_groups() -> Iterator[int]:
    """Yield the room in each control group. Cached files that are not in use count as free."""
    for folder, is_v2 in groups("memory"):
        names = ("memory.max", "memory.current") if is_v2 else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        most = read(folder / names[0])
        # v1 says "no limit" by a number near 2**63.
        if not most.isdecimal() or int(most) >= 1 << 60:
            continue
        used = read(folder / names[1])
        if used.isdecimal():
            yield int(most) - int(used) + _unused_files(folder, "inactive_file" if is_v2 else "total_inactive_file")


def _unused_files(folder: Path, name: str) -> int:
    words = (line.split() for line in read(folder / "memory.stat").splitlines())
    return next((int(pair[1]) for pair in words if len(pair) == 2 and pair[0] == name), 0)


def _of_address_space() -> Iterator[int]:
    try:
        import resource
    except ImportError:  # Windows
        return
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        pages = read(_OWN_PAGES).split()
        yield most - (int(pages[0]) * resource.getpagesize() if pages else 0)

"""Facts of the machine of the figures."""

from __future__ import annotations

import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

_GIB = 2**30


def num_cores() -> int:
    """Return the number of cores that this process can use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


def describe(threads: int) -> dict[str, Any]:
    """Return the machine's facts by name. memory_gib: total memory, None if unknown."""
    return {
        "cpu": cpu_name(),
        "vector": vector_units(),
        "cores": num_cores(),
        "threads": threads,
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": sys.version.split()[0],
    }


def short_name(facts: dict[str, Any]) -> str:
    """Return a machine's name for a file, such as "amd-epyc-2-cores"."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)|@ \S+", "", facts["cpu"].lower()))
    telling = [word for word in words if word not in ("cpu", "processor", "with", "family", "model")][:6]
    unit = [word.strip().lower().replace("-", "") for word in str(facts.get("vector", "")).split(",")[-1:] if word]
    return "-".join([*telling, *unit, str(facts["cores"]), "cores"])


def available_bytes() -> int | None:
    """Return the available memory in bytes; None if unknown."""
    return _meminfo("MemAvailable")


def cpu_name() -> str:
    """Return the processor's name, with its family and model: some virtual machines give several CPUs one name."""
    name, family, model = (_cpuinfo(field) for field in ("model name", "cpu family", "model"))
    if name and family and model:
        return f"{name} (family {family}, model {model})"
    return name or platform.processor() or platform.machine()


def vector_units() -> str:
    """Return the widest vector instructions that matrix products can use here, in words; "" if unknown."""
    flags = set((_cpuinfo("flags") or "").split())
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "VNNI", "avx512_bf16": "BF16", "amx_bf16": "AMX"}
    return ", ".join(name for flag, name in names.items() if flag in flags)


def _cpuinfo(field: str) -> str | None:
    path = Path("/proc/cpuinfo")
    found = re.search(rf"^{field}\s*:\s*(.+)$", path.read_text(), re.MULTILINE) if path.exists() else None
    return found[1].strip() if found else None


def _memory_gib() -> float | None:
    total = _meminfo("MemTotal")
    return round(total / _GIB, 1) if total else None


def _meminfo(field: str) -> int | None:
    path = Path("/proc/meminfo")
    found = re.search(rf"^{field}:\s+(\d+) kB$", path.read_text(), re.MULTILINE) if path.exists() else None
    return int(found[1]) * 1024 if found else None

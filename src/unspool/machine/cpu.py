"""The key of this machine's CPU among other CPUs.

Imports nothing of ours but the reader of small files. Does not know: threads and memory.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path
from typing import Final

from unspool.machine.cgroups import read

_CPUINFO: Final = Path("/proc/cpuinfo")
_FIELDS: Final = ("model name", "cpu family", "model", "stepping", "CPU implementer", "CPU part")


@cache
def cpu_key() -> str:
    """Return the CPU's name and its numbers as one key: some virtual machines give several CPUs one name."""
    first, _, _ = read(_CPUINFO).partition("\n\n")
    pairs = (line.partition(":") for line in first.splitlines())
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    words = [facts[name] for name in _FIELDS if name in facts]
    return " ".join(words) or platform.processor() or platform.machine()

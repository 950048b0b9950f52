"""Resident memory of this process, with mapped files, from the kernel."""

from __future__ import annotations

import re
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_REFERENCES = Path("/proc/self/clear_refs")


def resident_bytes() -> int | None:
    """Return the resident bytes now; None if unknown."""
    return _field("VmRSS")


def peak_bytes() -> int | None:
    """Return the most that was resident since `forget_peak`, or since the start if the system cannot reset the peak."""
    if _STATUS.exists():
        return _field("VmHWM")
    try:
        import resource
    except ModuleNotFoundError:
        return None
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest * 1024


def forget_peak() -> None:
    """Reset the peak to the memory that is resident now, if the system can."""
    if _REFERENCES.exists():
        _REFERENCES.write_text("5")


def _field(name: str) -> int | None:
    if not _STATUS.exists():
        return None
    found = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else None

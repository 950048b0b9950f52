"""Return free heap memory to the operating system after weights are packed or quantized."""

from __future__ import annotations

import ctypes
import sys


def trim_heap() -> None:
    """Return the free pages of the heap to the system. Without glibc (`malloc_trim`) this does nothing.

    Freed weights leave gaps between the packed ones. The heap keeps these gaps unless it is trimmed.
    """
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # musl lacks it
            libc.malloc_trim(0)

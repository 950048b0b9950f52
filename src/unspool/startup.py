"""Garbage collection during imports.

PyTorch and transformers create half a million objects, and all of them stay. A garbage collector that scans them
repeatedly takes a quarter of the import time.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def gc_paused() -> Iterator[None]:
    """Pause the garbage collector inside the context, then move all objects to the oldest generation.

    If the collector is already off, it stays off. If objects are frozen (`gc.freeze`), they stay frozen.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # This moves all objects to the oldest generation. Young objects would be scanned three times first.
            gc.freeze()
            gc.unfreeze()
        gc.enable()

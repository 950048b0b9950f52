"""Imports that the garbage collector does not hold up.

PyTorch and transformers bring half a million objects, all of which stay. Looking through them again and again for
garbage takes as long as a quarter of their import.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Hold the garbage collector back while the context lasts, and count what came meanwhile as old.

    Nothing changes where the collector is off already; what somebody has frozen stays frozen.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        if gc.get_freeze_count() == 0:
            # To freeze and thaw moves all objects to the oldest generation: the young ones would be walked thrice.
            gc.freeze()
            gc.unfreeze()
        gc.enable()

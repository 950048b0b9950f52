"""One engine for each model that the drop-in has seen, so that a second call does no work twice.

Owns: the map from models to engines, which keeps no model alive. Does not know: requests.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

from torch import nn

from unspool.engine import Engine
from unspool.engine.driver import Driver
from unspool.protocols import Runtime
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.trees import fingerprint, is_dispatched


class _Entry(NamedTuple):
    """A driver, and which tensors the model consisted of when it was made."""

    driver: Driver
    tensors: tuple[int, ...]


_DRIVERS: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def driver_of(model: Any) -> Driver:
    """Return the driver of this model's engine: the same one for each call while the model has the same tensors.

    New values in the same tensors are seen by the runtime; other tensors may mean another vocabulary, which the engine
    would not see. Requests that are under way on the former driver end there.

    Raises:
        ModelError: the model cannot run here; the message says why.
    """
    if is_dispatched(model):
        # Its runtime holds the model itself, which must not keep itself alive.
        return Driver(Engine(_runtime_of(model)))
    with _LOCK:
        tensors = fingerprint(model).tensors
        entry = _DRIVERS.get(model)
        if entry is None or entry.tensors != tensors:
            runtime = _runtime_of(model)
            if runtime.in_place:
                return Driver(Engine(runtime))  # it runs the caller's own module, which must not keep itself alive
            entry = _Entry(Driver(Engine(runtime)), tensors)
            _DRIVERS[model] = entry
        return entry.driver


def _runtime_of(model: Any) -> Runtime:
    """Return a runtime under the soft limits of `load`."""
    return runtime_of(model, own=False, max_cache_tokens="auto", max_sequences="auto")

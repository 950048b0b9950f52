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
from unspool.runtimes.wrap.model_copy import Fingerprint, fingerprint, is_dispatched
from unspool.runtimes.wrap.patches import find_patch
from unspool.runtimes.wrap.peft_models import base_of


class _Entry(NamedTuple):
    """A driver, and the model's fingerprint when it was made."""

    driver: Driver
    print: Fingerprint


_DRIVERS: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def driver_of(model: Any) -> Driver:
    """Return the driver of this model's engine: the same one for each call while the model has the same parts.

    The runtime sees new values in the same tensors. Other parts get a new engine, which can have another vocabulary or
    another path; requests that are under way on the former driver end there. A model that runs on its own modules gets
    an engine for each call: what is kept for later calls must not keep the model alive.

    Raises:
        ModelError: the model cannot run here; the message says why.
    """
    model = base_of(model)
    if is_dispatched(model) or find_patch(model):
        return Driver(Engine(_runtime_of(model)))
    with _LOCK:
        now = fingerprint(model)
        entry = _DRIVERS.get(model)
        if entry is None or now.has_other_parts(entry.print):
            runtime = _runtime_of(model)
            if runtime.in_place:
                return Driver(Engine(runtime))
            entry = _Entry(Driver(Engine(runtime)), now)
            _DRIVERS[model] = entry
        return entry.driver


def _runtime_of(model: Any) -> Runtime:
    """Return a runtime under the soft limits of `load`."""
    return runtime_of(model, own=False, max_cache_tokens="auto", max_sequences="auto")

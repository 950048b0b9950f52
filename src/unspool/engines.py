"""The cache of engines for transformers models: one engine per model, so that later calls of the drop-in reuse it.

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
from unspool.runtimes.wrap.wrapped import known_fingerprint


class _Entry(NamedTuple):
    """A driver, and the model's fingerprint when it was made."""

    driver: Driver
    print: Fingerprint | None


_DRIVERS: weakref.WeakKeyDictionary[nn.Module, _Entry] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def driver_of(model: Any) -> Driver:
    """Return the driver of this model's engine: the same driver while the model has the same parts.

    The runtime detects new values in the same tensors. If the model has other parts, it gets a new engine, possibly
    with another vocabulary or backend; running requests end on the previous driver. A model that runs on its own
    modules gets a new engine per call, because a cached engine would keep the model alive.

    Raises:
        ModelError: if the model cannot run here; the message says why.
    """
    model = base_of(model)
    patch = find_patch(model)
    if is_dispatched(model) or patch:
        return Driver(Engine(_runtime_of(model, patch)))
    with _LOCK:
        entry = _DRIVERS.get(model)
        if entry is None or fingerprint(model).has_other_parts(entry.print):
            runtime = _runtime_of(model, patch)
            if runtime.in_place:
                return Driver(Engine(runtime))
            entry = _Entry(Driver(Engine(runtime)), known_fingerprint(model))
            _DRIVERS[model] = entry
        return entry.driver


def _runtime_of(model: Any, patch: str) -> Runtime:
    """Return a runtime under the soft limits of `load`."""
    return runtime_of(model, owns_model=False, max_cache_tokens="auto", max_sequences="auto", patch=patch)

"""The wrapper through which every backend runs a transformers model: a copy, or the caller's own modules in place.

Owns the module that runs, its packed layers and its link to the user's weights. Knows no caches and no sequences.
"""

from __future__ import annotations

import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.module_tree import modules_in
from unspool.runtimes.weights.fuse_modules import fuse_modules
from unspool.runtimes.weights.kernel_module import repack
from unspool.runtimes.weights.packed_linear import Pack, PackReport, pack_rest
from unspool.runtimes.wrap.call_state import evaluating, growing_ropes, without_memory
from unspool.runtimes.wrap.model_copy import (
    AttentionNames,
    Fingerprint,
    attention_names,
    attention_of,
    copy_bare,
    copy_tree,
    fingerprint,
    input_device,
    is_dispatched,
    set_attention,
)


class WrappedModel:
    """A model that is called through its own `forward`.

    Args:
        model: a loaded transformers model.
        owns_model: True if the model is ours: the wrapper then changes it in place. Otherwise the wrapper makes a
            second module tree over the same tensors. A model that accelerate spread over devices, that rescales its own
            weights, or that cannot be copied, runs in place, in evaluation mode during each call.
        pack: see `pack_linears`.
        attention: attention implementations for calls; None for those of the model's configs.
        exclusive: True if calls from several threads must not overlap, because the model can keep state between its
            layers. Calls in place never overlap.
        patch: why the caller's own modules must run as they are, so that their hooks, adapters and replaced methods
            act; "" for a plain model. See `find_patch`.

    Attributes:
        module: the module that runs.
        in_place: True if that is the caller's own module.
        reason: why it runs in place; "" for a copy.
        patch: as given.
        device: device of the token ids.
        report: the packed layers; none before `pack`.
        fingerprint: of the user's model, as the module follows it; None for a model of ours.
        builds: number of modules made so far. It grows if the user's model gets other parts than before.
        version: number of changes of weights or parts found so far. Results of an earlier version are out of date.
    """

    module: Any
    in_place: bool
    reason: str
    device: torch.device
    report: PackReport
    fingerprint: Fingerprint | None

    def __init__(
        self,
        model: Any,
        *,
        owns_model: bool,
        pack: Pack = "auto",
        attention: AttentionNames | None = None,
        exclusive: bool = True,
        patch: str = "",
    ) -> None:
        self._source = None if owns_model else weakref.ref(model)
        self._pack, self._names, self._exclusive, self.patch = pack, attention, exclusive, patch
        self.builds = self.version = 0
        self._lock = threading.RLock()
        self._build(model)

    def _build(self, model: Any) -> None:
        self.fingerprint = None if self._source is None else fingerprint(model)
        self.module, self.reason = self._module_for(model)
        self.in_place = bool(self.reason)
        self.device = input_device(self.module)
        self.builds += 1
        self._attention = self._names
        self._ropes = growing_ropes(self.module)
        self.report, self._is_packed = PackReport(0, 0, "not packed"), False

    def _module_for(self, model: Any) -> tuple[Any, str]:
        """Return the module to run, and why it is the caller's own; "" for another one."""
        if self.patch:
            return model, self.patch
        return (model.eval(), "") if self._source is None else _copied(model)

    def pack(self) -> None:
        """Make calls of the module cheaper, once per module: packed linear layers, and fewer operators elsewhere."""
        if self._is_packed:
            return
        self._is_packed = True
        # A copy is never spread: such a model runs in place.
        if self.in_place or (self._source is None and is_dispatched(self.module)):
            self.report = PackReport(0, 0, self.reason or "the model is spread over devices")
            return
        self.report = pack_rest(self.module, keep=self._source is not None, pack=self._pack)
        if self._pack:
            fuse_modules(self.module)

    def set_attention(self, name: str) -> None:
        """Use the registered attention function `name` in every layer: permanently in a copy, per call in place."""
        if self.in_place:
            self._attention = [(config, name) for config, _ in attention_names(self.module)]
        else:
            set_attention(self.module, name)

    @contextmanager
    def calling(self) -> Iterator[Any]:
        """Yield the module, ready for calls: evaluation mode, no gradients, its attention implementations."""
        if not (self.in_place or self._attention is not None or self._ropes):
            with self._lock if self._exclusive else nullcontext(), torch.inference_mode():
                yield self.module
            return
        with ExitStack() as stack:
            if self._exclusive or self.in_place:
                stack.enter_context(self._lock)
            if self._attention is not None:
                stack.enter_context(attention_of(self._attention))
            if self.in_place:
                stack.enter_context(evaluating(self.module))
            # A caller's module can keep a tensor of the call, which must allow gradients later.
            stack.enter_context(torch.no_grad() if self.in_place else torch.inference_mode())
            if self._ropes:
                stack.enter_context(without_memory(self._ropes))
            yield self.module

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Run calls inside the context on a copy without hooks and replaced methods.

        The caller's hooks must see calls for requests only. If the module cannot be copied, it runs as it is.
        """
        if not self.patch or is_dispatched(self.module):
            yield
            return
        own = self.module
        try:
            with attention_of(self._attention or ()):
                self.module = copy_bare(own)
        except ModelError:
            pass
        try:
            yield
        finally:
            self.module = own

    def sync_weights(self) -> None:
        """Apply changes of the user's model since the last call.

        New values in the same tensors are packed again. If the model has other parts, a new module is made, unpacked.
        """
        model = self._source() if self._source is not None else None
        if model is None:
            return
        if self.patch:
            self.version += 1  # hooks can give other results in every call
            return
        now = fingerprint(model)
        if now == self.fingerprint:
            return
        self.version += 1
        if now.has_other_parts(self.fingerprint):
            self._build(model)
        else:
            self.fingerprint = now
            repack(self.module)

    def refresh(self) -> None:
        """Apply the user's weights, even if they were written through `.data`."""
        if self._source is not None and not self.patch:
            repack(self.module)
        self.version += 1

    def describe(self) -> list[str]:
        """Return how the model runs, in words."""
        dtype = str(next(self.module.parameters()).dtype).removeprefix("torch.")
        if self.patch:
            return [dtype, f"on the caller's own module, as it is then ({self.patch})"]
        return [dtype, str(self.report), *(["on the caller's own module"] if self.in_place else [])]


def _copied(model: Any) -> tuple[Any, str]:
    """Return a second module tree over the model's tensors, or the model itself and the reason."""
    if is_dispatched(model):
        return model, "the model is spread over devices"
    if any("layers_are_rescaled" in module.__dict__ for module in modules_in(model)):
        # The copy would rescale the tensors that it shares, and the original would not know.
        return model, "the model rescales its own weights"
    try:
        return copy_tree(model), ""
    except ModelError as error:
        return model, str(error)


class BackendModel(ABC):
    """A wrapped model as one backend calls it: follows the changes of the user's model, and probes it again after them.

    Raises:
        ModelError: if the backend cannot run the model.
    """

    _builds: int

    def __init__(self, wrapped: WrappedModel) -> None:
        self._wrapped = wrapped
        self._configure()

    @abstractmethod
    def _configure(self) -> None:
        """Set everything that depends on the wrapped module, and `_builds`; called again for each new module."""

    @property
    def module(self) -> Any:
        """The module that runs."""
        return self._wrapped.module

    @property
    def device(self) -> torch.device:
        """Device of the token ids."""
        return self._wrapped.device

    @property
    def report(self) -> PackReport:
        """The packed layers."""
        return self._wrapped.report

    @property
    def version(self) -> int:
        """Number of changes of the weights; see `WrappedModel`."""
        return self._wrapped.version

    @property
    def fingerprint(self) -> Fingerprint | None:
        """The fingerprint of the user's model; see `WrappedModel`."""
        return self._wrapped.fingerprint

    @property
    def in_place(self) -> bool:
        """True if the caller's own module runs."""
        return self._wrapped.in_place

    def sync_weights(self) -> None:
        """Apply changes of the user's model since the last call.

        Raises:
            ModelError: if the backend cannot run the changed model.
        """
        self._wrapped.sync_weights()
        if self._wrapped.builds != self._builds:
            self._configure()

    def refresh(self) -> None:
        """Apply the user's weights, even if they were written through `.data`."""
        self._wrapped.refresh()


AnyWrapper = TypeVar("AnyWrapper", bound=WrappedModel | BackendModel)

_SHARED: weakref.WeakKeyDictionary[nn.Module, dict[Any, Any]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def shared(model: Any, make: Callable[..., AnyWrapper], **options: Any) -> AnyWrapper:
    """Return `make(model, owns_model=False, **options)` over a user's own model: one per `make` and options, in sync.

    Raises:
        ModelError: if the model cannot run so.
    """
    key = (make, *sorted(options.items()))
    with _LOCK:
        wrappers = _SHARED.setdefault(model, {})
        found: AnyWrapper | None = wrappers.pop(key, None)
        if found is None:
            found = make(model, owns_model=False, **options)
        else:
            found.sync_weights()
        # A wrapper in place holds the model, and would keep its own key alive.
        if not found.in_place:
            wrappers[key] = found
        return found


def known_fingerprint(model: Any) -> Fingerprint | None:
    """Return the fingerprint of a user's own model, as its newest wrapper follows it; None without a wrapper."""
    with _LOCK:
        wrappers = [*_SHARED.get(model, {}).values()]
    return wrappers[-1].fingerprint if wrappers else None


def refresh(model: Any) -> None:
    """Apply the weights of a user's own model after they were written through `.data`.

    Every other change is found automatically. An unknown model is ignored.
    """
    with _LOCK:
        for wrapper in _SHARED.get(model, {}).values():
            wrapper.sync_weights()
            wrapper.refresh()

"""The wrapper through which every backend runs a transformers model: a copy, or the caller's own modules in place.

Owns the module that runs, its packed layers and its link to the user's weights. Knows no caches and no sequences.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.weights.fuse_activation import parted
from unspool.runtimes.weights.packed_linear import Pack, PackReport, pack_rest, repack
from unspool.runtimes.wrap.model_copy import (
    AttentionNames,
    attention_of,
    copy_bare,
    copy_tree,
    fingerprint,
    input_device,
    is_dispatched,
)


class WrappedModel:
    """A model that is called through its own `forward`.

    Args:
        model: a loaded causal language model.
        own: whether the model is ours: it is then changed in place. Otherwise a second module tree over the same
            tensors is made; a model that cannot have one (spread over devices by accelerate, not to be copied, or
            writing to its own weights) runs as it is, in evaluation mode for the length of each call.
        pack: see `pack_linears`.
        attention: attention implementations that calls run with; None for those of the model's configs.
        patch: why the caller's own modules must run as they are, so that hooks, adapters and replaced methods of the
            moment act; "" if they need not. See `find_patch`.

    Attributes:
        module: what runs.
        is_borrowed: whether that is the caller's own module.
        patch: as given.
        report: what was packed; nothing before `pack` was called.
        builds: counts how often a module was made: again if the user's model consists of other parts than before.
    """

    module: Any
    in_place: bool
    report: PackReport
    device: torch.device

    def __init__(
        self, model: Any, *, own: bool, pack: Pack = "auto", attention: AttentionNames | None = None, patch: str = ""
    ) -> None:
        self._source = None if own else weakref.ref(model)
        self._pack, self._attention, self.patch, self.builds = pack, attention, patch, 0
        self._lock = threading.RLock()
        self._build(model)

    def _build(self, model: Any) -> None:
        self._print = None if self._source is None else fingerprint(model)
        self.in_place, self._reason = False, ""
        if self.patch:
            self.module, self.in_place, self._reason = model, True, self.patch
        elif self._source is None:
            self.module = model.eval()
        else:
            self.module, self._reason = _copied(model)
            self.in_place = self.module is model
        self.device = input_device(self.module)
        self.builds += 1
        self._ropes = [module for module in self.module.modules() if _grows(module)]
        self.report, self._is_packed = PackReport(0, 0, "not packed"), False

    def pack(self) -> None:
        """Pack the linear layers, once."""
        if self._is_packed:
            return
        self._is_packed = True
        if self.in_place or is_dispatched(self.module):
            self.report = PackReport(0, 0, self._reason or "the model is spread over devices")
            return
        self.report = pack_rest(self.module, keep=self._source is not None, pack=self._pack)

    @contextmanager
    def calling(self) -> Iterator[Any]:
        """Yield the module, fit to be called while the context lasts: evaluation mode, no gradients, its attention.

        One thread at a time: some models keep between their layers what another call would change.
        """
        with self._lock, ExitStack() as stack:
            if self._attention is not None:
                stack.enter_context(attention_of(self._attention))
            if self.in_place:
                stack.enter_context(_evaluating(self.module))
            if self.patch:
                stack.enter_context(parted(self.module))
            # What a module of the caller's might keep must not be an inference tensor.
            stack.enter_context(torch.no_grad() if self.in_place else torch.inference_mode())
            if self._ropes:
                stack.enter_context(_fresh(self._ropes))
            yield self.module

    @contextmanager
    def trying(self) -> Iterator[None]:
        """Let trial calls run on a copy without hooks and replaced methods while the context lasts.

        A hook must see the calls of requests alone. A tree that cannot be copied is tried as it is.
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
        """Take over what has changed in the user's model since the last look.

        New values in the same tensors are taken over at once; for other parts a new module is made, not yet packed.
        """
        model = self._source() if self._source is not None else None
        if model is None or self.patch:
            return
        now = fingerprint(model)
        if now.has_other_parts(self._print):
            self._build(model)
        elif self._print != now:
            self._print = now
            repack(self.module)

    def refresh(self) -> None:
        """Take over the user's weights, also where they were written through `.data`."""
        if self._source is not None and not self.patch:
            repack(self.module)

    def describe(self) -> list[str]:
        """Return how the model is run, in words."""
        dtype = str(next(self.module.parameters()).dtype).removeprefix("torch.")
        if self.patch:
            return [dtype, f"on the caller's own module, as it is then ({self.patch})"]
        return [dtype, str(self.report), *(["on the caller's own module"] if self.in_place else [])]


def _copied(model: Any) -> tuple[Any, str]:
    """Return a second tree over the model's tensors, or the model itself and why it has to be that."""
    if is_dispatched(model):
        return model, "the model is spread over devices"
    if any(hasattr(module, "layers_are_rescaled") for module in model.modules()):
        # A copy would rescale the weights that it shares with the original, which would not know.
        return model, "the model rescales its own weights"
    try:
        return copy_tree(model), ""
    except ModelError:
        return model, "the model cannot be copied"


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode while the context lasts, and leave every module as it was."""
    training: list[Any] = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
        for module in training:
            if getattr(module, "layers_are_rescaled", False):
                module._rescale_layers()  # back to what is trained; else its next forward would see to that


def _grows(module: nn.Module) -> bool:
    """Return whether the module is a rotary embedding that remembers the longest sequence it has seen."""
    kinds = getattr(module, "rope_type", None)
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) for kind in kinds) and hasattr(module, "original_max_seq_len")


@contextmanager
def _fresh(ropes: list[Any]) -> Iterator[None]:
    """Let rotary embeddings begin, and end, without memory: a call must not depend on the calls before it."""
    _forget(ropes)
    try:
        yield
    finally:
        _forget(ropes)


def _forget(ropes: list[Any]) -> None:
    for rope in ropes:
        for name in [name for name in (*rope.__dict__, *rope._buffers) if name.endswith("original_inv_freq")]:
            _set_original(rope, name.removesuffix("original_inv_freq"))


def _set_original(rope: Any, prefix: str) -> None:
    original = getattr(rope, f"{prefix}original_inv_freq")
    current = getattr(rope, f"{prefix}inv_freq")
    rope.register_buffer(f"{prefix}inv_freq", original.to(current.device), persistent=False)
    setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


_WRAPPED: weakref.WeakKeyDictionary[nn.Module, dict[Pack, WrappedModel]] = weakref.WeakKeyDictionary()
_LOCK = threading.Lock()


def wrap(model: Any, pack: Pack = "auto") -> WrappedModel:
    """Return the host over a user's own model: the same one for each call."""
    with _LOCK:
        wrapped = _WRAPPED.get(model, {}).get(pack)
        if wrapped is None:
            wrapped = WrappedModel(model, own=False, pack=pack)
            # A borrowed host holds the model itself, which must not keep itself alive.
            if not wrapped.in_place:
                _WRAPPED.setdefault(model, {})[pack] = wrapped
        return wrapped


def refresh_wrapped(model: Any) -> None:
    """Take over the weights of a user's own model after they were written through `.data`."""
    with _LOCK:
        for wrapped in _WRAPPED.get(model, {}).values():
            wrapped.sync_weights()
            wrapped.refresh()

"""Temporary state of a model during one call: evaluation mode, and rotary embeddings without memory.

A call must leave a caller's own modules as they were, and must not depend on earlier calls.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from unspool.runtimes.module_tree import modules_in
from unspool.runtimes.wrap.compiled import without_compilation


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode inside the context, without compiling it, and restore its mode afterwards."""
    training: list[Any] = [module for module in modules_in(model) if module.training]
    for module in training:
        module.training = False
    try:
        with without_compilation(model):
            yield
    finally:
        for module in training:
            module.training = True
        for module in training:
            if getattr(module, "layers_are_rescaled", False):
                module._rescale_layers()  # training needs the original scale; RWKV's next forward is too late


def growing_ropes(model: nn.Module) -> list[Any]:
    """Return the rotary embeddings that remember the longest sequence so far."""
    return [module for module in modules_in(model) if _grows(module)]


def _grows(module: nn.Module) -> bool:
    kinds = module.__dict__.get("rope_type")  # `getattr` takes microseconds for a module that lacks it
    if kinds is None:
        return False
    kinds = kinds.values() if isinstance(kinds, dict) else [kinds]
    return any("dynamic" in str(kind) for kind in kinds) and hasattr(module, "original_max_seq_len")


@contextmanager
def without_memory(ropes: list[Any]) -> Iterator[None]:
    """Reset rotary embeddings before and after the context, so that no call depends on earlier ones."""
    _reset(ropes)
    try:
        yield
    finally:
        _reset(ropes)


def _reset(ropes: list[Any]) -> None:
    for rope in ropes:
        for name in [name for name in (*rope.__dict__, *rope._buffers) if name.endswith("original_inv_freq")]:
            _set_original(rope, name.removesuffix("original_inv_freq"))


def _set_original(rope: Any, prefix: str) -> None:
    original = getattr(rope, f"{prefix}original_inv_freq")
    current = getattr(rope, f"{prefix}inv_freq")
    rope.register_buffer(f"{prefix}inv_freq", original.to(current.device), persistent=False)
    setattr(rope, f"{prefix}max_seq_len_cached", rope.original_max_seq_len)


def usable_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the rows of a call in float32, as a tensor that autograd can use. It can share the memory of `rows`."""
    rows = rows if rows.dtype == torch.float32 else rows.float()
    # A tensor of inference mode stays one, but an ordinary tensor can share its memory. GPT-2's logits have 200 KB.
    return rows.new_empty(0).set_(rows) if rows.is_inference() else rows  # type: ignore[call-overload]

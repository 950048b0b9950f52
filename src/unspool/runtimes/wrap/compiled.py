"""Models of torch.compile: the plain modules inside, and calls that compile no graph.

Our backends call a model in many shapes, and each would be a graph of its own. Recognizes compiled parts by name,
without importing torch._dynamo.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import MethodType
from typing import Any

import torch
from torch import nn

from unspool.runtimes.module_tree import modules_in


def uncompiled(model: Any) -> Any:
    """Return the model inside `torch.compile(model)`; any other model unchanged."""
    while is_optimized(model):
        model = model._orig_mod
    return model


def is_compiled_forward(module: nn.Module, value: Any) -> bool:
    """Return True if the value is the compiled forward of the module's own class."""
    original = getattr(value, "_torchdynamo_orig_callable", None)
    if not isinstance(original, MethodType) or original.__self__ is not module:
        return False
    return original.__func__ is type(module).forward


def uncompile_copy(copy: nn.Module, originals: list[nn.Module]) -> None:
    """Make a copied tree plain: without the compiled forwards, which call the original, and compiled submodules.

    Args:
        copy: the copied tree.
        originals: the modules of the original tree; see `modules_in`.
    """
    if not any("forward" in source.__dict__ or is_optimized(source) for source in originals):
        return
    for module, source in zip(modules_in(copy), originals, strict=True):
        if "forward" in source.__dict__ and is_compiled_forward(source, source.__dict__["forward"]):
            module.__dict__.pop("forward", None)
        if not is_optimized(module):
            for name, child in module._modules.items():
                if is_optimized(child):
                    module._modules[name] = uncompiled(child)


def has_compiled_parts(model: nn.Module) -> bool:
    """Return True if a call of the model runs compiled code."""
    return any(
        is_optimized(module)
        or module._compiled_call_impl is not None
        or hasattr(module.__dict__.get("forward"), "_torchdynamo_orig_callable")
        for module in modules_in(model)
    )


@contextmanager
def without_compilation(model: nn.Module) -> Iterator[None]:
    """Run the compiled parts of a model as plain code inside the context."""
    if not has_compiled_parts(model):
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def is_optimized(model: Any) -> bool:
    """Return True for the wrapper that `torch.compile` puts around a module."""
    kind: Any = type(model)
    return _is_wrapper(kind)


@cache
def _is_wrapper(kind: type) -> bool:
    kinds = kind.__mro__
    return any(base.__name__ == "OptimizedModule" and base.__module__.startswith("torch._dynamo") for base in kinds)

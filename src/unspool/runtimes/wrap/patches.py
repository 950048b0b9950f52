"""Patches of a module tree: hooks, replaced methods, adapters, parametrizations and attention functions.

The classes and tensors of a plain tree define its forward. Only a plain tree can be copied, packed, fused or replayed,
and only its keys and values can be cached for later prompts. Changes nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from functools import cache, partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any, Final

import torch
from torch import nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unspool.runtimes.module_tree import COLLECTIONS, modules_in
from unspool.runtimes.wrap.compiled import is_compiled_forward, is_optimized

_LIBRARIES: Final = {"torch", "transformers", "unspool", "bitsandbytes", "torchao"}
"""Packages with modules that compute from their tensors and simple attributes only."""

_HELPERS: Final = _LIBRARIES | {"huggingface_hub", "functools", "contextlib", "typing", "abc", "dataclasses"}
"""Packages with functions that are used in classes of these libraries."""

_HARMLESS: Final = {"transformers.utils.output_capturing", "transformers.modeling_utils"}
"""Modules with transformers' own hooks, which stay in a tree: for hidden states and gradient checkpoints."""

_BASES: Final = frozenset({*nn.Module.__mro__, dict, list, str, int})
_SCALARS: Final = frozenset({bool, int, float, str, type(None)})


def find_patch(model: nn.Module) -> str:
    """Return the first patch of the tree, in words; "" for a plain tree."""
    everywhere = torch.nn.modules.module
    if everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks:
        return "hooks on all modules"
    kinds: set[type] = set()
    configs: dict[int, Any] = {}
    for module in modules_in(model):
        kind: Any = type(module)
        if kind not in kinds:
            kinds.add(kind)
            if _root(kind.__module__) not in _LIBRARIES:
                return f"modules of {_root(kind.__module__)} ({kind.__name__})"
        if reason := _patch_of(module):
            return reason
        if (config := module.__dict__.get("config")) is not None:
            configs[id(config)] = config
    classes = {base for kind in kinds for base in kind.__mro__} - _BASES
    return _first(map(_patched_class, classes)) or _first(map(_patched_file, _files_of(classes))) or _attention(configs)


def _first(reasons: Iterator[str]) -> str:
    return next((reason for reason in reasons if reason), "")


def _patch_of(module: nn.Module) -> str:
    state = module.__dict__
    if "parametrizations" in state["_modules"]:
        return f"parametrizations ({type(module).__name__})"
    hooks = state["_forward_hooks"]
    if state["_forward_pre_hooks"] or (hooks and not _are_harmless(hooks)):
        return f"hooks ({type(module).__name__})"
    for key, value in state.items():
        if key in COLLECTIONS or type(value) in _SCALARS:
            continue
        if callable(value) and not _is_expected(module, key, value):
            return f"a replaced `{key}` ({type(module).__name__})"
    return ""


def _are_harmless(hooks: Mapping[int, Any]) -> bool:
    return all(_home(hook) in _HARMLESS for hook in hooks.values())


def _is_expected(module: nn.Module, key: str, value: Any) -> bool:
    """Return True if the libraries themselves set this callable attribute."""
    if isinstance(value, nn.Module):
        return False  # `modules()` does not yield it, so its hooks are not checked
    if (
        key == "_compiled_call_impl"
        or is_optimized(module)
        or (key == "forward" and is_compiled_forward(module, value))
    ):
        return True
    if key in ("forward", "_old_forward") and _is_dispatching(module):
        return True
    if key != "forward" and _root(_home(value)) == "accelerate":
        return True  # methods such as `to`, which warn if a model is spread over devices
    if isinstance(value, type):
        return _is_helper(value.__module__)
    return _is_helper(_home(value)) and not hasattr(type(module), key)


def _is_dispatching(module: nn.Module) -> bool:
    """Return True if only accelerate has replaced the module's forward, to move tensors between devices."""
    state = module.__dict__
    current, original = state.get("forward"), state.get("_old_forward")
    if "_hf_hook" not in state or not isinstance(current, partial) or _root(_home(current)) != "accelerate":
        return False
    return isinstance(original, MethodType) and original.__func__ is type(module).forward


def _home(function: Any) -> str:
    """Return the module of a callable's code. Names that functools.wraps copies do not count."""
    while isinstance(function, partial):
        function = function.func
    if isinstance(function, MethodType):
        function = function.__func__
    if isinstance(function, FunctionType):
        return str(function.__globals__.get("__name__", ""))
    if isinstance(function, BuiltinFunctionType):
        return "torch"
    return type(function).__module__


def _root(name: str | None) -> str:
    return (name or "").partition(".")[0]


@cache
def _is_helper(name: str | None) -> bool:
    return _root(name) in _HELPERS


def _patched_class(kind: type) -> str:
    """Return a function of a class that comes from another package; "" for none."""
    for key, value in vars(kind).items():
        if type(value) is FunctionType and not _is_helper(value.__globals__.get("__name__")):
            return f"a replaced `{kind.__name__}.{key}`"
    return ""


def _files_of(classes: set[type]) -> set[str]:
    return {kind.__module__ for kind in classes if kind.__module__.startswith("transformers.models.")}


def _patched_file(name: str) -> str:
    """Return a function in a model's file that comes from another package; "" for none."""
    for key, value in vars(sys.modules[name]).items():
        if type(value) is FunctionType and not _is_helper(value.__globals__.get("__name__")):
            return f"a replaced `{name}.{key}`"
    return ""


def _attention(configs: dict[int, Any]) -> str:
    """Return an attention or mask function of a config that comes from another package; "" for none."""
    for config in list(configs.values()):
        parts = [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
        for each in (config, *parts):
            name = getattr(each, "_attn_implementation_internal", None)
            for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
                function = table.get(name) if isinstance(name, str) else None
                if function is not None and not _is_helper(_home(function)):
                    return f"an attention function of its own ({name})"
    return ""

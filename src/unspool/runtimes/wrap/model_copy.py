"""Copies of a module tree over the same tensors, the fingerprint that shows changes, and attention settings.

Reads a user's own model without changing it. Knows no caches.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

import torch
from torch import nn
from transformers import GenerationConfig, PreTrainedConfig

from unspool.errors import ModelError
from unspool.runtimes.module_tree import COLLECTIONS, buffers_of, modules_in, parameters_of
from unspool.runtimes.quantized.info import taken_up
from unspool.runtimes.weights.kernel_module import KernelModule
from unspool.runtimes.wrap.compiled import is_optimized, uncompile_copy

AttentionNames: TypeAlias = "Sequence[tuple[Any, str | None]]"
"""Every config of a tree with the name of its attention implementation."""

_SIMPLE: Final = frozenset({bool, int, float, str, type(None), torch.dtype})
# A forward, a training step or transformers' `generate` can change these attributes without changing results.
_VOLATILE: Final = frozenset(
    {
        "training",
        "gradient_checkpointing",
        "_gradient_checkpointing_func",
        "max_seq_len_cached",
        "layers_are_rescaled",
        "use_cache",
        "_name_or_path",
        "_output_capturing_hooks_installed",
    }
)
_UNCOMPARED: Final = _VOLATILE | COLLECTIONS
_WINDOWS: Final = (
    *("sliding_window", "sliding_window_size", "window_size"),
    *("attention_window_size", "attention_chunk_size"),
)
_CONTAINERS: Final = frozenset({dict, OrderedDict, list, set})
_FLAT: Final = frozenset({dict, list, set, tuple})
_CONFIGS: Final = (PreTrainedConfig, GenerationConfig)
_HOOKS: Final = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


class Fingerprint(NamedTuple):
    """The parts of a model, and the versions of their values.

    structure: its modules, their classes' forwards, and simple attributes of modules and configs. tensors: identity of
    parameters and buffers. values: address and version of each parameter. PyTorch counts neither writes through `.data`
    nor writes to tensors made in inference mode.
    """

    structure: tuple[Any, ...]
    tensors: tuple[int, ...]
    values: tuple[tuple[int, int], ...]

    def has_other_parts(self, before: Fingerprint | None) -> bool:
        """Return True if modules or tensors have changed, and not only values."""
        return before is None or self.tensors != before.tensors or self.structure != before.structure


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the current fingerprint of a model."""
    modules = modules_in(model)
    parameters = parameters_of(modules)
    tensors = (*map(id, parameters), *map(id, buffers_of(modules)))
    # The version is the number of writes. A tensor made in inference mode lacks it.
    values = tuple([(each.data_ptr(), 0 if each.is_inference() else each._version) for each in parameters])
    return Fingerprint(_structure(modules), tensors, values)


def structure(model: nn.Module) -> tuple[Any, ...]:
    """Return everything in a plain tree that affects its results, except the values of its tensors."""
    return _structure(modules_in(model))


def _structure(modules: list[nn.Module]) -> tuple[Any, ...]:
    found: list[Any] = []
    configs: dict[int, Any] = {}
    for module in modules:
        kind = type(module)
        found += (id(module), kind, kind.forward, *map(id, module._modules.values()))
        for name, value in module.__dict__.items():
            if name in _UNCOMPARED:
                continue
            if type(value) in _SIMPLE:
                found += (name, value)
            elif name == "config":
                configs[id(value)] = value
            elif callable(value) or type(value) is tuple:
                found += (name, _comparable(value))
    pending = list(configs.values())
    while pending:
        config = pending.pop()
        for name, value in vars(config).items():
            if hasattr(value, "_attn_implementation"):
                pending.append(value)
            elif name not in _VOLATILE:
                found += (name, value if type(value) in _SIMPLE else repr(value))
    return tuple(found)


def modules_of(model: nn.Module) -> tuple[Any, ...]:
    """Return the identity and the class of every module."""
    return tuple(part for module in modules_in(model) for part in (id(module), type(module)))


def _comparable(value: Any) -> Any:
    """Return a value that `==` compares fast: tensors in a tuple by identity."""
    return tuple(part if type(part) in _SIMPLE else id(part) for part in value) if type(value) is tuple else value


def copy_tree(model: Any) -> Any:
    """Return a copy of the module tree and its config in evaluation mode; parameters and buffers are the same objects.

    Raises:
        ModelError: if the tree cannot be copied.
    """
    return _copied(model, {})


def copy_bare(model: Any) -> Any:
    """Return a copy as `copy_tree` does, without hooks and replaced methods.

    Raises:
        ModelError: if the tree cannot be copied.
    """
    memo: dict[int, Any] = {}
    replaced: list[tuple[str, str]] = []
    for path, module in model.named_modules():
        memo |= {id(module.__dict__[name]): OrderedDict() for name in _HOOKS if name in module.__dict__}
        if isinstance(module, KernelModule):
            memo[id(module)] = module  # cannot be copied, and keeps no state
        for name, value in module.__dict__.items():
            if callable(value) and not isinstance(value, nn.Module) and not is_optimized(module):
                memo[id(value)] = value
                if hasattr(type(module), name):
                    replaced.append((path, name))
    tree = _copied(model, memo)
    for path, name in replaced:
        tree.get_submodule(path).__dict__.pop(name, None)
    for module in modules_in(tree):
        # transformers installs its own hooks again in the next call that needs them.
        module.__dict__.pop("_output_capturing_hooks_installed", None)
    return tree


def _copied(model: Any, memo: dict[int, Any]) -> Any:
    modules = modules_in(model)
    memo |= {id(tensor): tensor for tensor in (*parameters_of(modules), *buffers_of(modules), *taken_up(modules))}
    try:
        tree = _twin(model, memo)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied: {error}") from error
    uncompile_copy(tree, modules)
    return tree.eval() if any(module.training for module in modules) else tree


def _twin(owner: Any, memo: dict[int, Any]) -> Any:
    """Return `copy.deepcopy(owner, memo)` of a module or config, without a call per attribute: most are numbers."""
    if id(owner) in memo:
        return memo[id(owner)]
    kind: Any = type(owner)
    if not has_usual_copies(kind):
        return copy.deepcopy(owner, memo)
    twin = memo[id(owner)] = object.__new__(kind)
    attributes = vars(twin)
    for name, value in vars(owner).items():
        kind = type(value)
        if kind in _SIMPLE:
            attributes[name] = value
        elif name in COLLECTIONS and not value:
            attributes[name] = kind()  # no other module has it
        elif name == "_compiled_call_impl":
            continue  # PyTorch copies a module without its compiled call
        elif id(value) in memo:
            attributes[name] = memo[id(value)]
        elif kind in _CONTAINERS and not value:
            attributes[name] = memo[id(value)] = kind()
        else:
            attributes[name] = _copied_attribute(name, value, memo)
    return twin


def _copied_attribute(name: str, value: Any, memo: dict[int, Any]) -> Any:
    kind = type(value)
    if name == "_modules" and kind is dict:
        return {key: None if child is None else _twin(child, memo) for key, child in value.items()}
    if name in ("_parameters", "_buffers") and kind is dict:
        return dict(value)  # every tensor is in the memo as itself
    if kind in _FLAT and _SIMPLE.issuperset(map(type, (*value, *value.values()) if kind is dict else value)):
        memo[id(value)] = kind(value)
        return memo[id(value)]
    return _twin(value, memo) if isinstance(value, _CONFIGS) else copy.deepcopy(value, memo)


@cache
def has_usual_copies(kind: type) -> bool:
    """Return True if a copy of an object of this class has copies of its attributes, and nothing else."""
    # A convolution restores one attribute that old files lack.
    bases: tuple[Any, ...] = (nn.modules.conv._ConvNd, nn.Module, object)
    usual = next(base for base in bases if issubclass(kind, base))
    methods = ("__copy__", "__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__", "__setstate__", "__new__")
    return all(getattr(kind, name, None) is getattr(usual, name, None) for name in methods)


def is_dispatched(model: nn.Module) -> bool:
    """Return True if accelerate moves this model's tensors with hooks, which must not be copied."""
    return any("_hf_hook" in module.__dict__ for module in modules_in(model))


def _configs(model: nn.Module) -> list[Any]:
    """Return every config in the tree once, with sub-configs."""
    found: dict[int, Any] = {}
    pending: list[Any] = _direct_configs(model)
    while pending:
        config = pending.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation"):
            found[id(config)] = config
            pending += [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return list(found.values())


def _direct_configs(model: nn.Module) -> list[Any]:
    """Return the configs of the modules, each as often as modules have it."""
    owners = (each for each in modules_in(model) if "config" in each.__dict__ or hasattr(type(each), "config"))
    return [each.config for each in owners]


def set_attention(model: nn.Module, name: str) -> None:
    """Set the registered attention function `name` in every config of the model."""
    for config in _configs(model):
        config._attn_implementation_internal = name


def attention_names(model: nn.Module) -> AttentionNames:
    """Return the attention implementation of every config in the tree."""
    return [(config, config._attn_implementation_internal) for config in _configs(model)]


def set_attention_names(model: nn.Module, names: Sequence[str | None]) -> None:
    """Set the attention implementation of every config in the tree, in the order of `attention_names`."""
    for config, name in zip(_configs(model), names, strict=True):
        config._attn_implementation_internal = name


def restore_attention(names: AttentionNames) -> None:
    """Set every config to the attention implementation that it had when `attention_names` read it."""
    for config, name in names:
        config._attn_implementation_internal = name


def separate_encoder_attention(model: Any) -> AttentionNames:
    """Copy the configs of the encoder, so that those of the decoder can change.

    Returns:
        The attention implementation of every config of the decoder.
    """
    memo: dict[int, Any] = {}
    for module in modules_in(model.get_encoder()):
        if "config" in module.__dict__:
            module.__dict__["config"] = _twin(module.__dict__["config"], memo)
    configs = {id(each): each for each in _direct_configs(model.get_decoder())}
    return [(config, config._attn_implementation_internal) for config in configs.values()]


@contextmanager
def attention_of(names: AttentionNames) -> Iterator[None]:
    """Do as `restore_attention` inside the context."""
    current = [(config, config._attn_implementation_internal) for config, _ in names]
    restore_attention(names)
    try:
        yield
    finally:
        restore_attention(current)


def input_device(model: Any) -> torch.device:
    """Return the device of the model's token ids.

    Raises:
        ModelError: if the model does not tell its embeddings of tokens.
    """
    try:
        weight = model.get_input_embeddings().weight
    except (AttributeError, NotImplementedError) as error:
        reason = "does not tell its embeddings of tokens (`get_input_embeddings`): not supported in this version"
        raise ModelError(f"{type(model).__name__} {reason}; call its own `generate`") from error
    device: torch.device = weight.device
    return device if device.type != "meta" else torch.device("cpu")


@contextmanager
def narrow_windows(model: nn.Module, width: int) -> Iterator[None]:
    """Limit sliding windows and chunks to `width` tokens inside the context.

    A probe of a few tokens fits into any common window, and would not show a window that is applied wrongly.
    """
    owners = [*modules_in(model), *_configs(model)]
    named = [(each, name, vars(each).get(name)) for each in owners for name in _WINDOWS]
    changed = [(each, name, value) for each, name, value in named if type(value) is int and value > width]
    for each, name, _ in changed:
        each.__dict__[name] = width
    try:
        yield
    finally:
        for each, name, value in changed:
            each.__dict__[name] = value

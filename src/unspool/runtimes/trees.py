"""A second module tree over the same tensors, and what tells that the first one has changed.

Owns how a user's own model is looked at without being touched. Knows nothing of caches.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.quantised import taken_up

_Mark: TypeAlias = tuple[int, int, int]


class Fingerprint(NamedTuple):
    """Which tensors a model consists of, and which values these hold, as far as PyTorch counts changes.

    Writes through `.data` are not counted, nor those to tensors made in inference mode.
    """

    tensors: tuple[int, ...]
    values: tuple[tuple[int, int], ...]


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of all parameters, and the identity of all buffers."""
    parameters = list(model.parameters())
    tensors = tuple(id(tensor) for tensor in (*parameters, *model.buffers()))
    return Fingerprint(tensors, tuple((parameter.data_ptr(), _version(parameter)) for parameter in parameters))


def _version(tensor: torch.Tensor) -> int:
    """Return how often the tensor was written to; PyTorch does not count it for one made in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def copy_tree(model: Any) -> Any:
    """Return a copy of the module tree and its config in evaluation mode; parameters and buffers are the same objects.

    Raises:
        ModelError: the tree cannot be copied.
    """
    memo = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers(), *taken_up(model))}
    try:
        tree = copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(f"{type(model).__name__} cannot be copied: {error}") from error
    return tree.eval()


def is_dispatched(model: nn.Module) -> bool:
    """Return whether accelerate moves this model's tensors about with hooks, which must not be copied."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _configs(model: nn.Module) -> list[Any]:
    """Return every config in the tree, sub-configs included, each once."""
    found: dict[int, Any] = {}
    pending: list[Any] = [module.config for module in model.modules() if hasattr(module, "config")]
    while pending:
        config = pending.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation"):
            found[id(config)] = config
            pending += [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return list(found.values())


def set_attention(model: nn.Module, name: str) -> None:
    """Make every layer of the model attend through the registered function of this name."""
    for config in _configs(model):
        config._attn_implementation_internal = name


@contextmanager
def borrowed_attention(model: nn.Module, name: str) -> Iterator[None]:
    """Do as `set_attention` while the context lasts, and leave the model's configs as they were."""
    before = [(config, config._attn_implementation_internal) for config in _configs(model)]
    set_attention(model, name)
    try:
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation_internal = implementation


def input_device(model: Any) -> torch.device:
    """Return where the model expects its token ids."""
    weight = model.get_input_embeddings().weight
    device: torch.device = weight.device
    return device if device.type != "meta" else torch.device("cpu")

"""Hooks that read a model's hidden states during one pass: the input of its head, and the states between layers.

Knows no caches and no sequences: rows are rows of the pass.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from unspool.runtimes.module_tree import modules_in


def output_layer(model: Any) -> nn.Module:
    """Return the language-model head of a model that has one."""
    head: nn.Module | None = model.get_output_embeddings()
    assert head is not None, "the model lacks an output layer to read"
    return head


class LayerRow(NamedTuple):
    """A row of the pass at the input of layer number `layer`."""

    row: int
    layer: int


class Hook:
    """Hooks that act inside the context, in the thread that made them: other threads can run the same modules."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self._handles: list[RemovableHandle] = []

    @property
    def is_mine(self) -> bool:
        """True in the thread that made the hook."""
        return threading.get_ident() == self._thread

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


class HeadHook(Hook):
    """Keeps the input of the language-model head, and passes some of its rows on.

    Args:
        head: the output layer.
        keep: rows for the head to read; None for all.

    Attributes:
        states: [rows, width], all rows of the pass, sequence by sequence; None if the head was not called.
    """

    def __init__(self, head: nn.Module, keep: torch.Tensor | None = None) -> None:
        super().__init__()
        self._head, self._keep = head, keep
        self.states: torch.Tensor | None = None

    def __enter__(self) -> HeadHook:
        self._handles.append(self._head.register_forward_pre_hook(self._note))
        return self

    def _note(self, _: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        if not self.is_mine:
            return None
        states: torch.Tensor = inputs[0]
        self.states = states.reshape(-1, states.shape[-1])
        return None if self._keep is None else (self.states[self._keep.to(states.device)][None], *inputs[1:])

    def rows(self, rows: Sequence[int]) -> torch.Tensor:
        """Return some rows of the states. --> [rows, width]"""
        assert self.states is not None, "the head was not called"
        return self.states[torch.tensor(rows, device=self.states.device)]


class LayerHook(Hook):
    """Keeps some rows of the inputs of some layers.

    Args:
        layers: all decoder layers, in order.
        places: rows and layers to keep; at least one.
    """

    def __init__(self, layers: Sequence[nn.Module], places: Sequence[LayerRow]) -> None:
        super().__init__()
        self._layers = layers
        by_layer = sorted(range(len(places)), key=lambda index: places[index].layer)
        self._order = sorted(range(len(places)), key=by_layer.__getitem__)
        self._rows: dict[int, list[int]] = {}
        for index in by_layer:
            self._rows.setdefault(places[index].layer, []).append(places[index].row)
        self._found: dict[int, torch.Tensor] = {}

    def __enter__(self) -> LayerHook:
        for layer in self._rows:
            self._handles.append(self._layers[layer].register_forward_pre_hook(self._noting(layer), with_kwargs=True))
        return self

    def _noting(self, layer: int) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            states = _states(args, kwargs)
            if self.is_mine and states is not None:
                self._found[layer] = states.flatten(0, -2)[torch.tensor(self._rows[layer], device=states.device)]

        return note

    def states(self) -> torch.Tensor:
        """Return the kept rows, in the order of the places. --> [places, width]"""
        assert self._found.keys() == self._rows.keys(), "a layer was not called"
        found = [self._found[layer] for layer in self._rows]
        device = found[0].device
        return torch.cat([states.to(device) for states in found])[torch.tensor(self._order, device=device)]


class LayerSearch(Hook):
    """Finds the decoder layers: a list of modules, each of which passes its states unchanged to the next.

    Args:
        model: the module tree to search.
        num_layers: number of layers in the model's config; None if the config does not tell it.
    """

    def __init__(self, model: nn.Module, num_layers: int | None) -> None:
        super().__init__()
        lists = [module for module in modules_in(model) if isinstance(module, nn.ModuleList)]
        self._stacks = [tuple(modules) for modules in lists if num_layers and len(modules) == num_layers]
        self._calls: list[tuple[nn.Module, torch.Tensor | None, Any]] = []

    def __enter__(self) -> LayerSearch:
        for module in {id(module): module for stack in self._stacks for module in stack}.values():
            self._handles.append(module.register_forward_hook(self._note, with_kwargs=True))
        return self

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if self.is_mine:
            self._calls.append((module, _states(args, kwargs), output[0] if isinstance(output, tuple) else output))

    def found(self, head_width: int) -> tuple[nn.Module, ...] | None:
        """Return the layers; None if no list has states that a head of this width can read."""
        return next((stack for stack in self._stacks if self._is_chain(stack, head_width)), None)

    def _is_chain(self, stack: tuple[nn.Module, ...], head_width: int) -> bool:
        members = {id(module) for module in stack}
        calls = [call for call in self._calls if id(call[0]) in members]
        if [id(module) for module, _, _ in calls] != [id(module) for module in stack]:
            return False
        inputs, outputs = [call[1] for call in calls], [call[2] for call in calls]
        if any(states is None or states.ndim != 3 or states.shape[-1] != head_width for states in inputs):
            return False
        return all(_same(before, after) for before, after in zip(outputs[:-1], inputs[1:], strict=True))


def _states(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the hidden states among the arguments of a decoder layer."""
    states = args[0] if args else kwargs.get("hidden_states")
    return states if isinstance(states, torch.Tensor) else None


def _same(before: Any, after: torch.Tensor | None) -> bool:
    if not isinstance(before, torch.Tensor) or after is None or before.shape != after.shape:
        return False
    return before is after or torch.allclose(before, after.to(before.device), rtol=0, atol=0, equal_nan=True)

"""The linear layers of a decoder that make the cross-attention keys and values of a source.

A call of these layers alone reads a source without a pass of the decoder. Found by their results: knows no names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import nn

from unspool.runtimes.quantized.linear import QuantizedLinear
from unspool.runtimes.seq2seq.encoder_cache import KeysValues
from unspool.runtimes.weights.packed_linear import PackedLinear
from unspool.runtimes.wrap.hooks import Hook

Projection: TypeAlias = Callable[[torch.Tensor], torch.Tensor]
"""A linear layer: [sources, positions, width] --> [sources, positions, heads * head width]"""


class ProjectionSearch(Hook):
    """Inside the context, notes the linear layers that read the encoder's output.

    Args:
        decoder: the module tree to search.
        states: the encoder's output, [sources, positions, width].
    """

    def __init__(self, decoder: nn.Module, states: torch.Tensor) -> None:
        super().__init__()
        self._decoder, self._states = decoder, states
        self._names: dict[nn.Module, str] = {}
        self._outputs: list[tuple[str, torch.Tensor]] = []

    def __enter__(self) -> ProjectionSearch:
        for name, module in self._decoder.named_modules():
            if isinstance(module, nn.Linear | PackedLinear | QuantizedLinear):
                self._names[module] = name
                self._handles.append(module.register_forward_hook(self._note))
        return self

    def _note(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if self.is_mine and inputs and inputs[0] is self._states:
            self._outputs.append((self._names[module], output))

    def found(self, pairs: KeysValues) -> list[tuple[str, str]] | None:
        """Return the names of the layers that made the keys and values of each decoder layer; None if others did."""
        names = [(self._maker(key), self._maker(value)) for key, value in pairs]
        known = [(key, value) for key, value in names if key and value]
        return known if len(known) == len(names) else None

    def _maker(self, states: torch.Tensor) -> str:
        """Return the first layer in the order of calls that made the states; "" for none. Each layer makes one."""
        for place, (name, output) in enumerate(self._outputs):
            if output.numel() == states.numel() and by_head(output, states.shape[1]).equal(states):
                del self._outputs[place]
                return name
        return ""


def by_head(states: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Split the numbers of each position by head. --> [sources, heads, positions, head width]"""
    return states.view(*states.shape[:2], num_heads, -1).transpose(1, 2)

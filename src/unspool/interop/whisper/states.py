"""Attentions and hidden states of windows, from one pass of the model's own forward over each output.

Owns: that pass, and the division of its result into steps. Does not know: segments.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

import torch

from unspool.interop.own_forward import STATES
from unspool.runtimes.wrap.call_state import evaluating
from unspool.types import Source

_DECODER: Final = {
    "output_attentions": ("decoder_attentions", "cross_attentions"),
    "output_hidden_states": ("decoder_hidden_states",),
}
_ENCODER: Final = {"output_attentions": "attentions", "output_hidden_states": "hidden_states"}

STEPWISE: Final = tuple(name for names in _DECODER.values() for name in names)
"""Fields with one entry per step, each with one tensor per layer. Those of the encoder have one tensor per layer."""


class WindowStates:
    """Reads the states of windows.

    Args:
        model: of transformers; stays unchanged.
        asked: the names of STATES that the caller requests.
    """

    def __init__(self, model: Any, asked: Collection[str]) -> None:
        self._model, self._asked = model, {name: name in asked for name in STATES}

    def read(self, source: Source, ids: Sequence[int], width: int) -> dict[str, Any]:
        """Return the fields of transformers' output class that hold the states of one window, on the CPU.

        Args:
            source: the window.
            ids: the decoder's prompt and the output.
            width: of the prompt.
        """
        weight = next(self._model.parameters())
        inputs = {name: value.to(weight.device, weight.dtype) for name, value in source.inputs.items()}
        read = torch.tensor([list(ids[:-1])], device=weight.device)
        with torch.no_grad(), evaluating(self._model):
            encoded = self._model.get_encoder()(**inputs, **self._asked, return_dict=True)
            found = self._model(
                encoder_outputs=encoded, decoder_input_ids=read, use_cache=False, **self._asked, return_dict=True
            )
        fields: dict[str, Any] = {}
        for option in (name for name, is_asked in self._asked.items() if is_asked):
            fields[f"encoder_{_ENCODER[option]}"] = [layer[0].cpu() for layer in encoded[_ENCODER[option]]]
            for name in _DECODER[option]:
                fields[name] = tuple(
                    tuple(_of_step(layer, name, start, stop).cpu() for layer in found[name])
                    for start, stop in _steps(width, len(ids) - 1)
                )
        return fields


def _steps(width: int, count: int) -> list[tuple[int, int]]:
    """Return the positions that each step reads, [start, stop): the prompt, then one token each."""
    return [(0, width), *((place, place + 1) for place in range(width, count))]


def _of_step(layer: torch.Tensor, name: str, start: int, stop: int) -> torch.Tensor:
    """Return the rows of a layer for the positions of a step. Self-attention sees no later positions."""
    if name == "decoder_hidden_states":
        return layer[:, start:stop]  # --> [1, positions, width]
    rows = layer[:, :, start:stop]  # --> [1, heads, positions, keys]
    return rows[..., :stop] if name == "decoder_attentions" else rows


def stacked_states(name: str, rows: Sequence[Any], device: torch.device) -> Any:
    """Return a field of `WindowStates.read` of several windows as one batch. name: of the field."""
    if name not in STEPWISE:
        return tuple(torch.stack(layers).to(device) for layers in zip(*rows, strict=True))
    steps = zip(*rows, strict=True)
    return tuple(tuple(torch.cat(layers).to(device) for layers in zip(*step, strict=True)) for step in steps)

"""Models that decode with a part of theirs, such as BLIP-2: their `generate` makes embeddings for a language model.

Owns: which part decodes, and the input of that part for a prompt. Does not know: how the part decodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from transformers import GenerationMixin

from unspool.runtimes.wrap.prompt_reader import prepared_call
from unspool.types import PromptInputs, Source


def decoding_part(model: Any) -> Any:
    """Return the part that decodes if the class has its own `generate` and a part could decode instead; else None."""
    if type(model).generate is GenerationMixin.generate:
        return None
    return next((child for child in model.children() if isinstance(child, GenerationMixin)), None)


class Embedder:
    """Makes the input of a language model from a prompt with images or audio. model: with a part that decodes."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def __call__(self, inputs: Mapping[str, Any]) -> Source:
        """Return one prompt of the model as its language model reads it: embeddings, or the output of its encoder.

        Args:
            inputs: arguments of the model's `generate`, with `input_ids` [1, tokens] and `attention_mask`.

        Raises:
            ModelError: if the model refuses them.
        """
        device = self._model.device
        placed = {}
        for name, value in inputs.items():
            placed[name] = value.to(device) if isinstance(value, torch.Tensor) else value
        with torch.no_grad():
            call = prepared_call(self._model, placed)
        if call.module.config.is_encoder_decoder:  # transformers has run the encoder
            return Source(inputs={"encoder_outputs": call.arguments["encoder_outputs"][0]})
        embeds = call.arguments["inputs_embeds"]
        ids = call.ids if call.ids.shape[1] == embeds.shape[1] else placed["input_ids"]
        mask = torch.ones(embeds.shape[:2], dtype=torch.int64, device=embeds.device)
        read = PromptInputs(input_ids=ids, inputs_embeds=embeds, attention_mask=mask)
        return Source(inputs=read, token_ids=tuple(inputs["input_ids"][0].tolist()))

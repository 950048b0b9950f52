"""Cross-attention weights of a finished output, from one pass of the decoder over all of its tokens.

Owns: the copy of the model that returns weights. Does not know: their use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from unspool.errors import ModelError
from unspool.runtimes.seq2seq.encoder_cache import EncoderOutput
from unspool.runtimes.wrap.model_copy import copy_bare, copy_tree, is_dispatched, set_attention
from unspool.runtimes.wrap.patches import find_patch
from unspool.types import Source


class CrossAttention:
    """Returns cross-attention weights of a model with an encoder. The fast attention functions do not compute them.

    Args:
        model: of transformers; stays unchanged.

    Raises:
        ModelError: if the model cannot be copied.
    """

    def __init__(self, model: Any) -> None:
        if is_dispatched(model):
            raise ModelError(
                f"{type(model).__name__} is spread over devices, so its cross-attention cannot be read; load the whole "
                "model on one device"
            )
        self._model = copy_tree(model) if find_patch(model) else copy_bare(model)
        set_attention(self._model, "eager")
        self._weight = next(self._model.parameters())

    @torch.no_grad()
    def weights(self, source: Source, ids: Sequence[int], heads: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return the weights of some heads.

        Args:
            source: of the encoder.
            ids: tokens of the decoder, prompt included.
            heads: (layer, head) pairs, at least one.

        Returns:
            [heads, tokens, positions] float32 on the CPU; each row sums to 1.
        """
        inputs = {name: value.to(self._weight.device) for name, value in source.inputs.items()}
        inputs = {
            name: value.to(self._weight.dtype) if value.is_floating_point() else value for name, value in inputs.items()
        }
        states = self._model.get_encoder()(**inputs, return_dict=True).last_hidden_state
        found = self._model(
            encoder_outputs=EncoderOutput(last_hidden_state=states),
            decoder_input_ids=torch.tensor([list(ids)], device=self._weight.device),
            output_attentions=True,
            use_cache=False,
            return_dict=True,
        ).cross_attentions
        return torch.stack([found[layer][0, head] for layer, head in heads]).float().cpu()

"""Encoder-decoders with experts: they read the router logits in the output of their encoder."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

import unspool
from tests.tiny_models import VOCAB_SIZE, widen

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "d_model": 32,
    "num_experts": 4,
    "expert_capacity": 64,
    "pad_token_id": 1,
    "eos_token_id": 2,
}
_SWITCH = {
    **_COMMON,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}
_NLLB = {
    **_COMMON,
    **{f"{part}_layers": 2 for part in ("encoder", "decoder")},
    **{f"{part}_attention_heads": 4 for part in ("encoder", "decoder")},
    **{f"{part}_ffn_dim": 48 for part in ("encoder", "decoder")},
    **{f"{part}_sparse_step": 2 for part in ("encoder", "decoder")},
    "max_position_embeddings": 48,
    "decoder_start_token_id": 3,
}


def model_of(family: str) -> Any:
    torch.manual_seed(0)
    model: Any
    if family == "switch":
        model = SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**_SWITCH))
    else:
        model = NllbMoeForConditionalGeneration(NllbMoeConfig(**_NLLB))
    widen(model, lambda shape: torch.randn(shape) * 0.3)
    return model.eval()


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@pytest.mark.parametrize("family", ["switch", "nllb"])
def test_models_with_experts_give_the_tokens_of_transformers(family: str, options: dict[str, int]) -> None:
    model, ids = model_of(family), torch.tensor([[5, 6, 7, 8, 2], [9, 10, 11, 12, 2]])
    call = {"max_new_tokens": 12, "return_dict_in_generate": True, "output_scores": True, **options}
    ours, theirs = unspool.generate(model, ids, **call), model.generate(ids, **call)
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.scores, theirs.scores, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)

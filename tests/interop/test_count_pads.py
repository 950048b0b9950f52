"""`count_pads`: padded batches of models with learned positions, against transformers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import unspool
from tests.tiny_seq2seq import tiny_seq2seq

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "decoder_attention_heads": 4,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODERS: dict[str, dict[str, Any]] = {
    "Bart": {"d_model": 32, "decoder_layers": 2},
    "Pegasus": {"d_model": 32, "decoder_layers": 2},
    "TrOCR": {"d_model": 32, "decoder_layers": 2},
    "ProphetNet": {"hidden_size": 32, "num_decoder_layers": 2, "num_decoder_attention_heads": 4},
}
CALLS: list[dict[str, Any]] = [
    {},
    {"num_beams": 3, "num_return_sequences": 2},
    {"repetition_penalty": 1.3, "min_new_tokens": 4},
]
IDS = torch.tensor([[0, 0, 0, 5, 6], [7, 8, 9, 10, 11], [0, 12, 13, 14, 15]])
PADDED: dict[str, Any] = {"input_ids": IDS, "attention_mask": (IDS != 0).long(), "max_new_tokens": 8}


def decoder(name: str) -> Any:
    config = getattr(transformers, f"{name}Config")(**SIZES, **DECODERS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, f"{name}ForCausalLM")(config).eval()
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3)
    return model


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("call", CALLS, ids=["greedy", "beams", "processors"])
def test_pads_count_as_positions_on_request(name: str, call: dict[str, Any]) -> None:
    model = decoder(name)
    theirs = model.generate(**PADDED, **call)
    assert unspool.generate(model, **PADDED, **call, count_pads=True).equal(theirs)
    alone = unspool.generate(model, IDS[:1, 3:], max_new_tokens=8, **call)
    assert unspool.generate(model, **PADDED, **call)[: len(alone), 5:].equal(alone[:, 2:]), "else pads do not exist"


def test_left_padded_sources_count_as_positions_on_request() -> None:
    model = tiny_seq2seq("bart")
    theirs = model.generate(**PADDED, num_beams=3)
    assert unspool.generate(model, **PADDED, num_beams=3, count_pads=True).equal(theirs)
    assert not unspool.generate(model, **PADDED, num_beams=3).equal(theirs)


def test_a_streamer_sees_the_same_rows() -> None:
    model = decoder("Bart")

    class Rows:
        def __init__(self) -> None:
            self.columns: list[list[int]] = []

        def put(self, value: torch.Tensor) -> None:
            self.columns.append(value.flatten().tolist())

        def end(self) -> None:
            pass

    ours, theirs = Rows(), Rows()
    unspool.generate(model, **PADDED, count_pads=True, streamer=ours)
    model.generate(**PADDED, streamer=theirs)
    assert ours.columns == theirs.columns

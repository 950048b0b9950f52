"""The layers that make the keys and values of a source: found by their results."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from tests.tiny_seq2seq import random_source, tiny_seq2seq
from unspool.runtimes.seq2seq.cross_projections import ProjectionSearch, by_head
from unspool.runtimes.seq2seq.runtime import Seq2SeqRuntime

HEADS, STATES = 2, torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Decoder(nn.Module):
    """Two layers, each with a key and a value. alike: True for equal weights everywhere."""

    def __init__(self, *, alike: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.ModuleDict({"v": nn.Linear(8, 8), "k": nn.Linear(8, 8)}) for _ in range(2))
        self.other = nn.Linear(8, 8)
        for parameter in self.parameters() if alike else ():
            nn.init.constant_(parameter, 0.5)

    def forward(self, states: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        self.other(states + 1)
        return [(by_head(layer["k"](states), HEADS), by_head(layer["v"](states), HEADS)) for layer in self.layers]


@pytest.mark.parametrize("alike", [False, True])
@torch.inference_mode()
def test_layers_are_found_in_the_order_of_their_calls(alike: bool) -> None:
    decoder = Decoder(alike=alike)
    with ProjectionSearch(decoder, STATES) as search:
        pairs = decoder(STATES)
    assert search.found(pairs) == [(f"layers.{layer}.k", f"layers.{layer}.v") for layer in range(2)]
    assert not any(module._forward_hooks for module in decoder.modules())


@torch.inference_mode()
def test_keys_that_are_changed_after_their_layer_have_none() -> None:
    decoder = Decoder()
    with ProjectionSearch(decoder, STATES) as search:
        pairs = [(2 * key, value) for key, value in decoder(STATES)]
    assert search.found(pairs) is None


@pytest.mark.parametrize("family", ["t5", "bart", "whisper", "marian"])
def test_they_read_a_source_as_a_pass_of_the_decoder_does(family: str) -> None:
    forward = Seq2SeqRuntime(tiny_seq2seq(family), owns_model=False)._model.forward
    assert forward.projections is not None
    source = random_source(family)
    found, expected = forward.encode([source])[0], replace(forward, projections=None).encode([source])[0]
    for pair, other in zip(found, expected, strict=True):
        assert pair[0].equal(other[0]) and pair[1].equal(other[1])


def test_a_decoder_that_projects_the_encoders_output_first_has_none() -> None:
    assert Seq2SeqRuntime(tiny_seq2seq("vit-bert"), owns_model=False)._model.forward.projections is None

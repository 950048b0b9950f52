"""Each family for images and audio, tiny and random, by each column: tokens and scores are those of transformers."""

from __future__ import annotations

import pytest

from tests.parity.media import CELLS, LABELS, backend_of, fault_of
from tests.sampling import sampled
from tests.tiny_multimodal import FAMILIES


@pytest.mark.parametrize(("family", "column"), sampled(CELLS, 12))
def test_a_cell_is_exact(family: str, column: str) -> None:
    assert fault_of(family, column) == ""


def test_every_family_is_in_the_table() -> None:
    assert set(LABELS) == set(FAMILIES)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "mistral3", "blip_2"])
def test_language_models_with_attention_of_the_interface_decode_on_the_slot_cache(family: str) -> None:
    assert backend_of(family) == "slot cache"

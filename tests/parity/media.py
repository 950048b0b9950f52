"""Families of models for images and audio by groups of options: what Unspool writes beside transformers' generate.

tests/parity/test_media.py examines the cells, tools/write_compatibility.py renders them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

import unspool
from tests.parity.results import RESULTS, difference
from tests.tiny_multimodal import alone, prompts_of, tiny_multimodal
from unspool.engines import driver_of
from unspool.errors import UnspoolError

LABELS: dict[str, str] = {
    "llava": "LLaVA",
    "qwen2_5_vl": "Qwen2.5-VL",
    "gemma3": "Gemma 3",
    "mistral3": "Mistral 3",
    "blip_2": "BLIP-2, OPT",
    "blip_2_t5": "BLIP-2, T5",
    "instructblip": "InstructBLIP, Llama",
    "instructblip_t5": "InstructBLIP, T5",
    "paligemma": "PaliGemma",
    "qwen2_audio": "Qwen2-Audio",
}

_LENGTHS: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


class Column(NamedTuple):
    """A column of the table. batch: False for one prompt without padding. embeds: True for embeddings without ids."""

    text: str
    options: dict[str, Any]
    batch: bool = True
    embeds: bool = False


COLUMNS: dict[str, Column] = {
    "images and audio": Column("greedy search over a left-padded batch of two prompts with an image or audio each", {}),
    "one prompt": Column("greedy search over the second prompt alone", {}, False),
    "beams": Column("`num_beams=3`, `num_return_sequences=2`", {"num_beams": 3, "num_return_sequences": 2}),
    "processors": Column(
        "`repetition_penalty=1.4`, `no_repeat_ngram_size=2`", {"repetition_penalty": 1.4, "no_repeat_ngram_size": 2}
    ),
    "sampling": Column("`do_sample=True` with `top_k=1`", {"do_sample": True, "top_k": 1}),
    "inputs_embeds": Column("`num_beams=2`: embeddings in place of the ids", {"num_beams": 2}, embeds=True),
    "states": Column("attentions and hidden states of greedy search", RESULTS["states"]),
    "states of beams": Column("the same with `num_beams=3`", RESULTS["states of beams"]),
    "returned cache": Column("`past_key_values` as a cache of transformers", RESULTS["returned cache"]),
}
REASONS: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "r": (
        (("gemma3", "inputs_embeds"), ("paligemma", "inputs_embeds")),
        "Refused, as in transformers: `prepare_inputs_for_generation` of these models does not take embeddings.",
    ),
}
"""Letter --> the cells that are refused, here and by transformers, and why."""

KNOWN = {cell: letter for letter, (cells, _) in REASONS.items() for cell in cells}
CELLS = [(family, column) for family in LABELS for column in COLUMNS]


def fault_of(family: str, column: str) -> str:
    """Return how tokens, scores, states, caches or the output class of a cell differ from transformers'; "" if equal.

    A cell of KNOWN is at fault if one of the two does not refuse it.
    """
    model, inputs, cell = tiny_multimodal(family), prompts_of(family), COLUMNS[column]
    if column in RESULTS:
        return difference(model, inputs, cell.options)
    if not cell.batch:
        inputs = alone(family, inputs, 1)
    if cell.embeds:
        embeds = model.get_input_embeddings()(inputs.pop("input_ids")).detach()
        inputs = {"inputs_embeds": embeds, **inputs}  # transformers counts the rows of the first tensor
    options = {**_LENGTHS, "return_dict_in_generate": True, "output_scores": True, **cell.options}
    if (family, column) in KNOWN:
        accepted = [name for name, call in _CALLS.items() if not _is_refused(call, model, {**inputs, **options})]
        return f"accepted by {' and '.join(accepted)}" if accepted else ""
    found, expected = (call(model, **inputs, **options) for call in _CALLS.values())
    if type(found) is not type(expected) or found.sequences.tolist() != expected.sequences.tolist():
        return f"{found.sequences.tolist()}, and transformers writes {expected.sequences.tolist()}"
    pairs = zip(found.scores, expected.scores, strict=True)
    # Equal infinities differ by NaN.
    far = max(float((one - other).nan_to_num(0, torch.inf, -torch.inf).abs().max()) for one, other in pairs)
    largest = max(float(each.nan_to_num(0, 0, 0).abs().max()) for each in expected.scores)
    # Random weights can give scores of over 100; float32 rounds these to steps of 8e-6.
    return "" if far < 1e-4 * max(1.0, largest / 32) else f"scores differ by {far:.2g}, the largest is {largest:.3g}"


_CALLS: dict[str, Callable[..., Any]] = {
    "unspool.generate": unspool.generate,
    "model.generate": lambda model, **given: model.generate(**given),
}


def _is_refused(call: Callable[..., Any], model: Any, given: dict[str, Any]) -> bool:
    """Return whether a call raises an error about embeddings."""
    try:
        call(model, **given)
    except (ValueError, UnspoolError) as error:
        return "inputs_embeds" in str(error)
    return False


def backend_of(family: str) -> str:
    """Return the name of the backend that runs the decoder of a family."""
    model: Any = tiny_multimodal(family)
    decoder = getattr(model, "language_model", model) if "blip" in family else model
    backend: str = driver_of(decoder).engine.runtime.info.backend
    return backend.split(":")[0]

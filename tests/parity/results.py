"""Results of the drop-in beside tokens, by family: attentions, hidden states and caches of transformers."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch

import unspool
from tests.parity.families import GROUPS, PAD, PROMPTS, SOURCED, WITHOUT_MEMORY, model_of
from tests.tiny_seq2seq import random_source

STATES = ("attentions", "hidden_states", "decoder_attentions", "cross_attentions", "decoder_hidden_states")
ENCODED = ("encoder_attentions", "encoder_hidden_states")

WITHOUT_ATTENTION = ("mamba", "mamba2", "falcon_mamba")
"""Families for which transformers fails if attentions are requested."""

RESULTS: dict[str, dict[str, Any]] = {
    "states": {"output_attentions": True, "output_hidden_states": True},
    "states of beams": {"output_attentions": True, "output_hidden_states": True, "num_beams": 3},
    "returned cache": {},
}
"""Column --> the options of its call."""

REASONS: dict[str, tuple[tuple[tuple[str, str], ...], str]] = {
    "p": (
        (("whisper", "states of beams"),),
        "Whisper's own `generate` returns the rows of its outputs only. Here they are those of all beams.",
    ),
    "q": (
        tuple(
            (family, "returned cache")
            for family in ("mpt", "rwkv", "openai", "xlnet", "xlm", "recurrent_gemma", "bert")
        ),
        "transformers returns no cache of its standard classes for this model.",
    ),
}
"""Letter --> the cells, and why their results are not those of transformers."""

KNOWN = {cell: letter for letter, (cells, _) in REASONS.items() for cell in cells}

CELLS = [(family, column) for families in GROUPS.values() for family in families for column in RESULTS]


def fault_of(family: str, column: str) -> str:
    """Return how a result differs from transformers', in words; "" if all its fields are equal."""
    given = dict(RESULTS[column])
    if family in WITHOUT_ATTENTION:
        given.pop("output_attentions", None)
    return difference(model_of(family), _inputs(family), {**given, **WITHOUT_MEMORY.get(family, {})})


def difference(model: Any, inputs: dict[str, Any], options: dict[str, Any]) -> str:
    """Return how the result of a call of the drop-in differs from transformers', in words; "" if its fields are equal.

    options: those of a column of RESULTS. Without attentions and hidden states the returned cache is compared.
    """
    model, given = copy.deepcopy(model), dict(options)
    try:
        model.set_attn_implementation("eager")
    except ValueError:
        given.pop("output_attentions", None)
    given |= {"return_dict_in_generate": True, "max_new_tokens": 4, "eos_token_id": None, "pad_token_id": PAD}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model.generate(**inputs, do_sample=False, **given)
        found = unspool.generate(model, **inputs, **given)
    is_cache = "output_hidden_states" not in options
    names = ["sequences", *(() if is_cache else (*STATES, *ENCODED))]
    for name in names:
        if expected.get(name) is not None and not same(found.get(name), expected[name]):
            return f"{name} differs"
    if not is_cache:
        return "" if any(expected.get(name) is not None for name in STATES) else "transformers returns no states"
    cache = found.get("past_key_values")
    assert cache is None or len(cache) >= 0  # computes it
    one, other = _tensors(cache), _tensors(expected.get("past_key_values"))
    return "" if other and same(one, other) else f"past_key_values differs or holds nothing ({len(other)} tensors)"


def same(found: Any, expected: Any) -> bool:
    """Return whether nested tuples hold tensors of equal shape and value."""
    if isinstance(expected, tuple | list):
        return len(found or ()) == len(expected) and all(map(same, found, expected))
    if not isinstance(expected, torch.Tensor):
        return bool(found is expected)
    return found.shape == expected.shape and torch.allclose(found.float(), expected.float(), rtol=1e-3, atol=1e-4)


def _inputs(family: str) -> dict[str, Any]:
    if family in SOURCED:
        source = random_source(family, 0, 9)
        inputs = dict(source.inputs)
        if family == "git":
            inputs["input_ids"] = torch.tensor([[7, 8]])
        return inputs
    return {"input_ids": torch.tensor(PROMPTS[:1]), "attention_mask": torch.ones(1, len(PROMPTS[0]), dtype=torch.int64)}


def _tensors(cache: Any) -> list[torch.Tensor]:
    """Return all tensors of a cache, in a fixed order."""
    if isinstance(cache, torch.Tensor):
        return [cache]
    if isinstance(cache, dict):
        return [tensor for value in cache.values() for tensor in _tensors(value)]
    if isinstance(cache, list | tuple):
        return [tensor for value in cache for tensor in _tensors(value)]
    parts = {name: part for name, part in vars(cache).items() if name != "config"} if hasattr(cache, "__dict__") else {}
    return [tensor for name in sorted(parts) for tensor in _tensors(parts[name])]

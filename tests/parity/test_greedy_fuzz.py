"""Random greedy configs on tiny models of several families: the drop-in writes what `model.generate` writes."""

from __future__ import annotations

import random
import warnings
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import unspool
from tests.sampling import sampled
from tests.tiny_models import VOCAB_SIZE, tiny_model

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "qwen2", "opt")
PAD = 0
# Tokens from here on may be suppressed, those below be forced: a token that is both leaves nothing to choose from.
FREE = 20
# Where transformers' own best two scores are closer than this, either may win by the rounding of a kernel.
NEAR_TIE = 1e-4


class Call(NamedTuple):
    """One call: a family, left-padded prompts, whether the mask is given, and options, perhaps in a config object."""

    family: str
    prompts: list[list[int]]
    gives_mask: bool
    options: dict[str, Any]
    as_config: bool


def draw_call(number: int) -> Call:
    """Return the call of this number, the same one in every run."""
    rng = random.Random(number)
    tokens = range(3, VOCAB_SIZE)
    lengths = [rng.randint(1, 9) for _ in range(rng.choice((1, 1, 2, 3)))]
    prompts = [[rng.choice(tokens) for _ in range(length)] for length in lengths]
    width, is_padded = max(lengths), len(set(lengths)) > 1
    options = draw_ends(rng, width) | draw_constraints(rng, is_padded)
    chosen = rng.sample(sorted(options), k=rng.randint(0, len(options)))
    options = {name: options[name] for name in chosen}
    if "exponential_decay_length_penalty" in options:
        # transformers turns a forbidden end that is to be raised into NaN.
        for name in ("min_length", "min_new_tokens", "forced_eos_token_id", "bad_words_ids"):
            options.pop(name, None)
    least = options.get("min_length", 0)
    if rng.random() < 0.5:
        options["max_new_tokens"] = rng.randint(max(1, options.get("min_new_tokens", 0), least - width), 25)
    elif rng.random() < 0.6:
        options["max_length"] = rng.randint(width + 10, width + 25)
    else:
        options.pop("min_length", None)  # may be more than the default length allows
    return Call(rng.choice(FAMILIES), prompts, rng.random() < 0.5, options, rng.random() < 0.3)


def draw_ends(rng: random.Random, width: int) -> dict[str, Any]:
    """Return options on the end of an output; one token in eight ends it."""
    ends = rng.sample(range(3, FREE), 2) + rng.sample(range(FREE, VOCAB_SIZE), 10)
    minimum = rng.choice(({"min_length": width + rng.randint(0, 9)}, {"min_new_tokens": rng.randint(0, 9)}))
    return minimum | {
        "eos_token_id": rng.choice((ends, ends[:1], ends)),
        "exponential_decay_length_penalty": (rng.randint(0, 6), rng.uniform(1.01, 1.6)),
        "forced_eos_token_id": rng.choice((ends[0], ends[:2])),
    }


def draw_constraints(rng: random.Random, is_padded: bool) -> dict[str, Any]:
    """Return options on which tokens may come; those that count pads in transformers only where there are none."""
    tokens = range(3, VOCAB_SIZE)
    words = [tuple(rng.choice(tokens) for _ in range(rng.choice((1, 1, 2)))) for _ in range(8)]
    options: dict[str, Any] = {
        "repetition_penalty": rng.choice((0.7, 1.2, 1.8)),
        "bad_words_ids": [list(word) for word in words],
        "sequence_bias": [[list(word), rng.uniform(-9.0, 9.0)] for word in dict.fromkeys(words)],
        "suppress_tokens": rng.sample(range(FREE, VOCAB_SIZE), 20),
        "begin_suppress_tokens": rng.sample(range(FREE, VOCAB_SIZE), 20),
        "forced_bos_token_id": rng.randrange(3, FREE),
        "remove_invalid_values": True,
        "renormalize_logits": True,
    }
    if not is_padded:
        options |= {
            "no_repeat_ngram_size": rng.randint(1, 4),
            "encoder_no_repeat_ngram_size": rng.randint(1, 3),
            "encoder_repetition_penalty": rng.choice((0.6, 1.5)),
        }
    return options


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family, seed=5)


def arguments(call: Call) -> dict[str, Any]:
    """Return the keyword arguments, fresh objects for each of the two calls."""
    width = max(map(len, call.prompts))
    rows = [[PAD] * (width - len(prompt)) + prompt for prompt in call.prompts]
    found: dict[str, Any] = {"input_ids": torch.tensor(rows)}
    if call.gives_mask:
        found["attention_mask"] = (found["input_ids"] != PAD).long()
    options = {"pad_token_id": PAD, **call.options}
    if call.as_config:
        return found | {"generation_config": transformers.GenerationConfig(**options)}
    return found | options


def agrees(found: list[int], expected: list[int], margins: list[float]) -> bool:
    """Return whether two rows of new tokens are the same up to the first near-tie of the expected one."""
    for token, other, margin in zip(found, expected, margins, strict=False):
        if token != other:
            return margin < NEAR_TIE
    return len(found) == len(expected)


@pytest.mark.parametrize("number", sampled(range(1200), 60))
def test_a_random_greedy_config_gives_the_tokens_of_transformers(number: int):
    call = draw_call(number)
    model = model_of(call.family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scored = arguments(call) | {"return_dict_in_generate": True, "output_scores": True}
        expected = model.generate(**scored)
    width = max(map(len, call.prompts))
    best = torch.stack(expected.scores, 1).topk(2).values  # --> [rows, steps, 2]
    margins = (best[..., 0] - best[..., 1]).tolist()
    found = unspool.generate(model, **arguments(call))
    assert found[:, :width].equal(expected.sequences[:, :width])
    for row, other, margin in zip(found.tolist(), expected.sequences.tolist(), margins, strict=True):
        assert agrees(row[width:], other[width:], margin), call


def test_the_drill_covers_what_it_is_for():
    """Every option occurs, and rows end early, in the sampled part too."""
    calls = [draw_call(number) for number in sampled(range(1200), 60)]
    options = set().union(*(call.options for call in calls))
    assert options >= {"max_length", "min_length", "forced_bos_token_id", "no_repeat_ngram_size", "eos_token_id"}
    assert len(options) >= 16 and {call.family for call in calls} == set(FAMILIES)
    assert any(not call.gives_mask and len(set(map(len, call.prompts))) > 1 for call in calls)

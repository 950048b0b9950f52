"""A number that is accepted works: at both ends of its range no option makes NaN or +inf of the scores."""

from __future__ import annotations

import math
from typing import Any

import pytest

import unspool
from tests.tiny_models import tiny_model
from unspool.errors import OptionError

LM = unspool.load(tiny_model("llama"))
FORBIDS: dict[str, Any] = {"suppress_tokens": [1, 2, 3, 40], "max_new_tokens": 4, "seed": 1}
DRAWS: dict[str, Any] = {"do_sample": True}
ENDS: dict[str, tuple[list[float], dict[str, Any]]] = {
    "temperature": ([1e-18, 1e18], DRAWS),
    "repetition_penalty": ([1e-18, 1e18], {}),
    "encoder_repetition_penalty": ([1e-18, 1e18], {}),
    "presence_penalty": ([-1e18, 1e18], {}),
    "frequency_penalty": ([-1e18, 1e18], {}),
    "dry_multiplier": ([1e-300, 1e18], {"dry_sequence_breakers": [9]}),
    "dry_base": ([1, 1e18], {"dry_multiplier": 1.0, "dry_sequence_breakers": [9]}),
    "guidance_scale": ([1e-300, 1e18], DRAWS),
    "length_penalty": ([-50, 50], {"num_beams": 2}),
    "diversity_penalty": ([1e-300, 1e18], {"num_beams": 2, "num_beam_groups": 2}),
    "top_p": ([1e-300, 1 - 1e-16], DRAWS),
    "min_p": ([1e-300, 1], DRAWS),
    "typical_p": ([1e-300, 1 - 1e-16], DRAWS),
    "epsilon_cutoff": ([1e-300, 1 - 1e-16], DRAWS),
    "eta_cutoff": ([1e-300, 1 - 1e-16], DRAWS),
    "top_n_sigma": ([1e-300, 1e18], DRAWS),
    "top_h": ([1e-300, 1], DRAWS),
    "xtc_probability": ([1e-300, 1], DRAWS),
    "penalty_alpha": ([1e-300, 1], {"top_k": 3}),
}
BEYOND: dict[str, list[float]] = {
    "temperature": [1e-45, 1e-19, 1e19, 1e300, math.inf, math.nan],
    "repetition_penalty": [0, 1e-45, 1e300],
    "encoder_repetition_penalty": [0, 1e-45, 1e300],
    "presence_penalty": [-1e300, 1e300],
    "frequency_penalty": [-1e300, 1e300],
    "guidance_scale": [1e300],
    "length_penalty": [-1e300, 51],
    "top_n_sigma": [1e300],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, (values, _) in ENDS.items() for value in values])
def test_both_ends_of_a_range_work(name: str, value: float) -> None:
    result = LM.generate([5, 6, 7, 5, 6], **FORBIDS, **ENDS[name][1], **{name: value})
    completion = result.completions[0]
    assert completion.token_ids and not set(completion.token_ids) & {1, 2, 3, 40}
    assert math.isfinite(completion.logprob)


@pytest.mark.parametrize("value", [-1e18, 1e18])
def test_a_bias_works_at_both_ends(value: float) -> None:
    result = LM.generate([5, 6, 7], sequence_bias={(9,): value}, **FORBIDS)
    assert (9 in result.completions[0].token_ids) == (value > 0)
    with pytest.raises(OptionError, match=r"numbers in \[-1e18, 1e18\]"):
        LM.generate([5, 6, 7], sequence_bias={(9,): value * 1e280}, **FORBIDS)


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BEYOND.items() for value in values])
def test_beyond_them_is_an_error_that_names_the_range(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=rf"`{name}` must be (0 or )?in [\[(].*, .*\], got"):
        LM.generate([5, 6, 7], **FORBIDS, **ENDS[name][1], **{name: value})


def test_the_smallest_temperature_takes_the_best_token() -> None:
    sampled = LM.generate([5, 6, 7], temperature=1e-18, **FORBIDS).completions[0].token_ids
    assert sampled == LM.generate([5, 6, 7], temperature=0, **FORBIDS).completions[0].token_ids

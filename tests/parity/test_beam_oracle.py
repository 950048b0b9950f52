"""Beam search against recorded runs of transformers, and against transformers itself on random options."""

from __future__ import annotations

import random
import warnings
from typing import Any

import pytest
import torch

import unspool
from tests.oracle import is_close, oracle_cases, oracle_model, real_prompts
from tests.parity.test_greedy_fuzz import Call, arguments, draw_call, model_of
from tests.sampling import sampled
from tests.tiny_models import tiny_model

BEAM = oracle_cases("beam")
DIVERSE = oracle_cases("group_beam")
NATIVE = [case for case in BEAM if "max_length" not in case["kwargs"] or len(case["input_ids"]) == 1]
NEAR_TIE = 1e-4


def completions(case: dict[str, Any], sequences: torch.Tensor) -> list[list[int]]:
    """Return each row without prompt and pads: which token pads a row is not the same in all versions."""
    width = len(case["input_ids"][0])
    rows = (row[width:] for row in sequences.tolist())
    return [row[: len(expected)] for row, expected in zip(rows, case["expected"]["completions"], strict=True)]


@pytest.mark.parametrize("case", [*BEAM, *DIVERSE], ids=lambda case: case["id"])
def test_the_drop_in_returns_the_recorded_tokens_and_scores(case: dict[str, Any]) -> None:
    found = unspool.generate(
        oracle_model(case["model"]),
        torch.tensor(case["input_ids"]),
        attention_mask=torch.tensor(case["attention_mask"]),
        **case["kwargs"],
        do_sample=False,
        return_dict_in_generate=True,
    )
    expected = case["expected"]
    assert completions(case, found.sequences) == expected["completions"]
    scores = found.sequences_scores.tolist()
    assert all(is_close(one, other) for one, other in zip(scores, expected["sequences_scores"], strict=True))


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case["id"])
def test_the_native_api_returns_the_recorded_tokens_best_first(case: dict[str, Any]) -> None:
    lm = unspool.load(oracle_model(case["model"]))
    generations = lm.generate(real_prompts(case), **case["kwargs"], do_sample=False)
    found = [list(each.token_ids) for generation in generations for each in generation.completions]
    assert found == case["expected"]["completions"]
    for generation in generations:
        scores = [each.score for each in generation.completions]
        assert scores == sorted(scores, reverse=True)


def test_the_oracle_has_cases_of_every_kind() -> None:
    assert len(BEAM) == 26 and len(NATIVE) >= 20


def draw_beams(number: int) -> Call:
    """Return a random call of beam search, the same one in every run."""
    call, rng = draw_call(number), random.Random(-1 - number)
    beams = rng.randint(2, 6)
    options = call.options | {
        "num_beams": beams,
        "num_return_sequences": rng.randint(1, beams),
        "early_stopping": rng.choice((True, False, "never")),
        "length_penalty": rng.choice((-0.5, 0.0, 0.6, 1.0, 2.0)),
    }
    # Forced and biased ends leave transformers' beams with placeholders of score -1e9, which it may return.
    for name in ("forced_bos_token_id", "forced_eos_token_id", "exponential_decay_length_penalty"):
        options.pop(name, None)
    return call._replace(options=options)


@pytest.mark.parametrize("number", sampled(range(400), 40))
def test_random_beams_are_transformers_beams(number: int) -> None:
    call = draw_beams(number)
    model = model_of(call.family)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.generate(**arguments(call), return_dict_in_generate=True, output_scores=True)
    ours = unspool.generate(model, **arguments(call), return_dict_in_generate=True)
    scores = list(zip(ours.sequences_scores.tolist(), theirs.sequences_scores.tolist(), strict=True))
    assert all(abs(one - other) < NEAR_TIE * max(1.0, abs(other)) for one, other in scores), scores
    width = max(map(len, call.prompts))
    for row, (mine, other) in enumerate(zip(ours.sequences.tolist(), theirs.sequences.tolist(), strict=True)):
        ends = call.options.get("eos_token_id", [2])
        assert cut(mine[width:], ends) == cut(other[width:], ends) or is_near_tie(scores, row)


def cut(tokens: list[int], ends: Any) -> list[int]:
    """Return the tokens up to the first end."""
    ends = ends if isinstance(ends, list | tuple) else [ends]
    return tokens[: next((index + 1 for index, token in enumerate(tokens) if token in ends), len(tokens))]


def is_near_tie(scores: list[tuple[float, float]], row: int) -> bool:
    """Return whether another output scores the same to rounding, so that either may stand first."""
    return any(abs(scores[row][0] - other[0]) < NEAR_TIE for index, other in enumerate(scores) if index != row)


def test_too_few_outputs_to_fill_a_tensor_are_said_so() -> None:
    """With two tokens allowed and one step to go there are two sequences, whatever the number of beams."""
    model = tiny_model("gpt2")
    allowed = {"suppress_tokens": list(range(2, 97)), "max_new_tokens": 1, "num_beams": 3}
    assert unspool.generate(model, torch.tensor([[5]]), num_return_sequences=2, **allowed).shape == (2, 2)
    with pytest.raises(unspool.StrategyError, match="row 0: beam found 2 outputs and a tensor needs 3"):
        unspool.generate(model, torch.tensor([[5]]), num_return_sequences=3, **allowed)
    assert len(unspool.load(model).generate([5], num_return_sequences=3, **allowed).completions) == 2

"""Greedy search against recorded runs of transformers, through the drop-in and through the native API."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unspool
from tests.oracle import is_close, oracle_cases, oracle_model, real_prompts

GREEDY = oracle_cases("greedy")
# The native API counts no pads, so max_length means less in a padded batch there.
NATIVE = [case for case in GREEDY if "max_length" not in case["kwargs"] or len(case["input_ids"]) == 1]
SCORED = [case for case in GREEDY if "transition_scores" in case["expected"]]


def tensors(case: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: torch.tensor(case[name]) for name in ("input_ids", "attention_mask")}


def test_the_oracle_has_cases_of_every_kind():
    assert len(GREEDY) == 40 and len(NATIVE) == 40 and len(SCORED) == 3


@pytest.mark.parametrize("case", GREEDY, ids=lambda case: case["id"])
def test_the_drop_in_returns_the_recorded_tokens(case: dict[str, Any]):
    found = unspool.generate(oracle_model(case["model"]), **tensors(case), **case["kwargs"], do_sample=False)
    assert found.tolist() == case["expected"]["sequences"]


@pytest.mark.parametrize("case", NATIVE, ids=lambda case: case["id"])
def test_the_native_api_returns_the_recorded_tokens(case: dict[str, Any]):
    lm = unspool.load(oracle_model(case["model"]))
    generations = lm.generate(real_prompts(case), **case["kwargs"], do_sample=False)
    found = [list(generation.completions[0].token_ids) for generation in generations]
    assert found == case["expected"]["completions"]


@pytest.mark.parametrize("case", SCORED, ids=lambda case: case["id"])
def test_the_drop_in_returns_the_recorded_scores(case: dict[str, Any]):
    model, expected = oracle_model(case["model"]), case["expected"]
    found = unspool.generate(model, **tensors(case), **case["kwargs"], return_dict_in_generate=True, output_scores=True)
    for name, normalized in (("transition_scores", False), ("transition_scores_normalized", True)):
        scores = model.compute_transition_scores(found.sequences, found.scores, normalize_logits=normalized)
        assert_close(scores.flatten().tolist(), [score for row in expected[name] for score in row])
    for step, rows in zip(found.scores, expected["step_scores_top5"], strict=True):
        for row, best in zip(step, rows, strict=True):
            assert_close(row[[token for token, _ in best]].tolist(), [score for _, score in best])
            assert row.topk(len(best)).indices.tolist() == [token for token, _ in best]


def assert_close(found: list[float], expected: list[float | None]) -> None:
    assert all(is_close(one, other) for one, other in zip(found, expected, strict=True)), (found, expected)

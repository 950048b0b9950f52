"""Contrastive search against recorded runs of transformers 4.48, the last line of versions that had it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unspool
from tests.oracle import oracle_cases, oracle_model, real_prompts

CONTRASTIVE = oracle_cases("contrastive")


@pytest.mark.parametrize("case", CONTRASTIVE, ids=lambda case: case["id"])
def test_the_drop_in_returns_the_recorded_tokens(case: dict[str, Any]) -> None:
    found = unspool.generate(
        oracle_model(case["model"]),
        torch.tensor(case["input_ids"]),
        attention_mask=torch.tensor(case["attention_mask"]),
        **case["kwargs"],
        do_sample=False,
    )
    assert found.tolist() == case["expected"]["sequences"]


@pytest.mark.parametrize("case", CONTRASTIVE, ids=lambda case: case["id"])
def test_the_native_api_returns_the_recorded_tokens(case: dict[str, Any]) -> None:
    generations = unspool.load(oracle_model(case["model"])).generate(real_prompts(case), **case["kwargs"])
    assert [generation.strategy for generation in generations] == ["contrastive"] * len(generations)
    found = [list(generation.completions[0].token_ids) for generation in generations]
    assert found == case["expected"]["completions"]


def test_the_oracle_has_cases_of_every_kind() -> None:
    assert len(CONTRASTIVE) == 6
    assert {case["model"] for case in CONTRASTIVE} == {"gpt2", "llama", "gpt_neox"}
    assert any(len(case["input_ids"]) > 1 for case in CONTRASTIVE)

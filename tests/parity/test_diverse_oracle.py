"""Diverse beam search against recorded runs of transformers 4.48, the last version that had it.

The drop-in runs these cases in test_beam_oracle.py.
"""

from __future__ import annotations

from typing import Any

import pytest

import unspool
from tests.oracle import is_close, oracle_cases, oracle_model, real_prompts

DIVERSE = oracle_cases("group_beam")


@pytest.mark.parametrize("case", DIVERSE, ids=lambda case: case["id"])
def test_the_native_api_returns_the_recorded_tokens_and_scores(case: dict[str, Any]) -> None:
    lm = unspool.load(oracle_model(case["model"]))
    generations = lm.generate(real_prompts(case), **case["kwargs"])
    assert {generation.strategy for generation in generations} == {"diverse_beam"}
    outputs = [each for generation in generations for each in generation.completions]
    expected = case["expected"]
    assert [list(each.token_ids) for each in outputs] == expected["completions"]
    assert all(is_close(each.score, other) for each, other in zip(outputs, expected["sequences_scores"], strict=True))


def test_the_oracle_has_cases_of_every_kind() -> None:
    options = [case["kwargs"] for case in DIVERSE]
    assert len(DIVERSE) == 6
    assert {each["early_stopping"] for each in options} == {True, False, "never"}
    assert {each["num_beam_groups"] for each in options} == {2, 3}
    assert any(len(case["input_ids"]) > 1 for case in DIVERSE)
    assert any(
        len(ids) < case["kwargs"]["max_new_tokens"] for case in DIVERSE for ids in case["expected"]["completions"]
    )


def test_a_group_at_its_end_chooses_the_padding_token() -> None:
    """This case hangs on it: the padding token is the ending one, which the groups behind then avoid."""
    (case,) = (case for case in DIVERSE if case["id"] == "pub-gpt_neox-23-group_beam")
    model = oracle_model(case["model"])
    assert model.generation_config.pad_token_id == model.generation_config.eos_token_id
    lm = unspool.load(model)
    other = lm.generate(real_prompts(case), **case["kwargs"], pad_token_id=150)
    found = [list(each.token_ids) for generation in other for each in generation.completions]
    assert found != case["expected"]["completions"]

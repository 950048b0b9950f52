"""Contrastive search, diverse beams and DoLa against what transformers 4.48.3 wrote (tools/record_dropped.py)."""

import json
from pathlib import Path

import pytest
import torch

import unspool
from tests.oracle import is_close, oracle_model

CASES = json.loads((Path(__file__).parent.parent / "oracle" / "dropped.json").read_text())


def test_there_are_cases_of_each():
    counts = [sum(case["strategy"] == name for case in CASES) for name in ("contrastive", "diverse_beam", "dola")]
    assert counts == [24, 48, 36]


@pytest.mark.parametrize("case", CASES, ids=[f"{n}-{case['model']}-{case['strategy']}" for n, case in enumerate(CASES)])
def test_tokens_and_scores_are_those_recorded(case):
    prompt = torch.tensor([case["prompt"]])
    found = unspool.generate(
        oracle_model(case["model"]),
        prompt,
        attention_mask=torch.ones_like(prompt),
        return_dict_in_generate=True,
        **case["options"],
    )
    assert found.sequences[:, prompt.shape[1] :].tolist() == case["sequences"]
    if "sequences_scores" in case:
        scores = found.sequences_scores.tolist()
        assert all(is_close(a, b) for a, b in zip(scores, case["sequences_scores"], strict=True))

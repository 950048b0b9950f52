"""Constrained beam search against recorded runs of transformers 4.48: never without the words, never a worse score.

Tokens are not compared: the recorded runs shared their beams out by `bank * 100 + score`, counted words in the prompt,
and filled up with outputs that held nothing. Of the eight recorded outputs six hold the words; ours score higher than
three of those and the same as the other three.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

import unspool
from tests.oracle import oracle_cases, oracle_model, real_prompts
from tests.strategies.test_constraints import holds
from unspool import Completion

CONSTRAINED = oracle_cases("constrained_beam")
NEAR_TIE = 1e-4


def words_of(case: dict[str, Any]) -> list[Any]:
    """Return the forced words as tuples, alternatives as tuples of tuples."""
    return [
        tuple(word) if isinstance(word[0], int) else tuple(tuple(one) for one in word)
        for word in case["kwargs"]["force_words_ids"]
    ]


@cache
def outputs_of(number: int) -> tuple[Completion, ...]:
    """Return our outputs of a case, prompt by prompt."""
    case = CONSTRAINED[number]
    lm = unspool.load(oracle_model(case["model"]))
    generations = lm.generate(real_prompts(case), **case["kwargs"], do_sample=False)
    assert {generation.strategy for generation in generations} == {"constrained_beam"}
    return tuple(completion for generation in generations for completion in generation.completions)


@pytest.mark.parametrize("number", range(len(CONSTRAINED)), ids=[case["id"] for case in CONSTRAINED])
def test_every_output_holds_the_words_and_scores_at_least_as_high(number: int) -> None:
    case, words = CONSTRAINED[number], words_of(CONSTRAINED[number])
    outputs, expected = outputs_of(number), case["expected"]
    for output, recorded, score in zip(outputs, expected["completions"], expected["sequences_scores"], strict=True):
        assert holds(output.token_ids, words)
        if holds(recorded, words):
            assert output.score >= score - NEAR_TIE * max(1.0, abs(score))


def test_the_recorded_outputs_are_what_the_first_lines_say() -> None:
    assert len(CONSTRAINED) == 6
    differences = [
        output.score - score
        for number, case in enumerate(CONSTRAINED)
        for output, recorded, score in zip(
            outputs_of(number), case["expected"]["completions"], case["expected"]["sequences_scores"], strict=True
        )
        if holds(recorded, words_of(case))
    ]
    assert len(differences) == 6 and sum(difference > 0.5 for difference in differences) == 3


@pytest.mark.parametrize("case", CONSTRAINED, ids=lambda case: case["id"])
def test_the_drop_in_returns_the_same_outputs(case: dict[str, Any]) -> None:
    found = unspool.generate(
        oracle_model(case["model"]),
        torch.tensor(case["input_ids"]),
        attention_mask=torch.tensor(case["attention_mask"]),
        **case["kwargs"],
        do_sample=False,
        return_dict_in_generate=True,
    )
    outputs, width = outputs_of(CONSTRAINED.index(case)), len(case["input_ids"][0])
    for row, score, output in zip(found.sequences.tolist(), found.sequences_scores.tolist(), outputs, strict=True):
        assert tuple(row[width:])[: len(output.token_ids)] == output.token_ids
        assert score == pytest.approx(output.score, abs=1e-4 * max(1.0, abs(score)))

"""The diversity penalty on rows worked by hand, and against a run of transformers 4.48 that was recorded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.processors.support import applied, context, one, state_of

CASE = json.loads((Path(__file__).parent / "data" / "diversity_case.json").read_text())


def test_worked_example_of_diversity() -> None:
    states = [state_of("diversity_penalty", context(diversity_penalty=0.5))]
    found = applied("diversity_penalty", states, torch.zeros(1, 9), taken_tokens=[(7, 2, 7)])
    assert found.tolist() == [[0, 0, -0.5, 0, 0, 0, 0, -1.0, 0]]


def test_a_row_that_avoids_nothing_stays_as_it_is() -> None:
    states = [state_of("diversity_penalty", context(diversity_penalty=penalty)) for penalty in (0.5, 3.0)]
    scores = torch.randn(2, 9, generator=torch.Generator().manual_seed(0))
    assert torch.equal(applied("diversity_penalty", states, scores, taken_tokens=[(), ()]), scores)
    found = applied("diversity_penalty", states, scores, taken_tokens=[(), (4,)])
    assert torch.equal(found[0], scores[0])
    assert found[1, 4] == scores[1, 4] - 3.0


def test_what_is_forbidden_stays_forbidden() -> None:
    row = [0.0, float("-inf"), 1.0]
    states = [state_of("diversity_penalty", context(diversity_penalty=2.0))]
    found = applied("diversity_penalty", states, torch.tensor([row]), taken_tokens=[(1, 2)])
    assert found.tolist() == [[0.0, float("-inf"), -1.0]]


def test_each_row_pays_its_own_penalty_in_a_batch_bit_for_bit_as_alone() -> None:
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(40, 50, generator=generator) * 5
    taken_tokens = [tuple(torch.randint(0, 50, (row % 7,), generator=generator).tolist()) for row in range(40)]
    states = [state_of("diversity_penalty", context(diversity_penalty=0.1 + row / 7)) for row in range(40)]
    together = applied("diversity_penalty", states, scores, taken_tokens=taken_tokens)
    for row in range(40):
        alone = applied("diversity_penalty", [states[row]], scores[row : row + 1], taken_tokens=[taken_tokens[row]])
        assert torch.equal(alone[0], together[row])


def test_it_does_not_depend_on_the_output_so_far() -> None:
    assert one("diversity_penalty", [0.0] * 9, (1, 2, 3), diversity_penalty=0.5) == one(
        "diversity_penalty", [0.0] * 9, diversity_penalty=0.5
    )


@pytest.mark.parametrize("group", [0, 1])
def test_the_recorded_case_of_the_hamming_penalty(group: int) -> None:
    """Two prompts with four beams in two groups; the rows are those of the second group, which avoids the first's."""
    beams, groups = CASE["kwargs"]["num_beams"], CASE["kwargs"]["num_beam_groups"]
    size = beams // groups
    tokens, logits = CASE["call_kwargs"]["current_tokens"], torch.tensor(CASE["logits"])
    taken_tokens = [tuple(tokens[row // size * beams :][: group * size]) for row in range(len(logits))]
    states = [state_of("diversity_penalty", context(diversity_penalty=CASE["kwargs"]["diversity_penalty"]))] * 4
    found = applied("diversity_penalty", states, logits, taken_tokens=taken_tokens)
    expected = torch.tensor(CASE["expected"]["scores"]) if group == CASE["call_kwargs"]["beam_group_idx"] else logits
    torch.testing.assert_close(found, expected)

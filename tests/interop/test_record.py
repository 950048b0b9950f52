"""Scores and logits as transformers' output classes hold them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import VOCAB_SIZE, tiny_model
from unspool.interop.record import steps_of

MODEL = tiny_model("llama", seed=5)
PROMPT = torch.tensor([[11, 12, 13, 11, 14], [31, 32, 33, 34, 35]])
BOTH = {"return_dict_in_generate": True, "output_scores": True, "output_logits": True}
CONSTRAINTS: dict[str, Any] = {
    "repetition_penalty": 1.4,
    "no_repeat_ngram_size": 2,
    "bad_words_ids": [[40], [41, 42]],
    "suppress_tokens": [50, 51],
    "min_new_tokens": 1,
    "sequence_bias": [[[60], 3.0]],
}
SAMPLING: list[dict[str, Any]] = [
    {},
    {"top_k": 5},
    {"top_k": None, "temperature": 0.6, "top_p": 0.8},
    {"top_k": 0, "min_p": 0.2, "typical_p": 0.9},
    {"temperature": 1.7, "epsilon_cutoff": 2e-3, "eta_cutoff": 2e-3},
    {"top_k": 0, "top_h": 0.6, "renormalize_logits": True},
    {"temperature": 0.7, "top_k": 10, "top_p": 0.9, **CONSTRAINTS},
]


def assert_steps_equal(found: tuple[torch.Tensor, ...], expected: tuple[torch.Tensor, ...]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, CONSTRAINTS, {"forced_eos_token_id": 2}], ids=["plain", "constrained", "forced"]
)
def test_every_step_of_greedy_has_the_scores_and_logits_of_transformers(options: dict[str, Any]):
    arguments = {"max_new_tokens": 9, "eos_token_id": None, "pad_token_id": 0, **options, **BOTH}
    found, expected = unspool.generate(MODEL, PROMPT, **arguments), MODEL.generate(PROMPT, **arguments)
    assert found.sequences.equal(expected.sequences)
    assert_steps_equal(found.scores, expected.scores)
    assert_steps_equal(found.logits, expected.logits)
    assert (torch.stack(found.scores) == -torch.inf).any() == (options != {})


@pytest.mark.parametrize("options", SAMPLING, ids=str)
def test_the_next_token_is_drawn_from_the_scores_of_transformers(options: dict[str, Any]):
    arguments = {"do_sample": True, "max_new_tokens": 1, **options, **BOTH}
    found, expected = unspool.generate(MODEL, PROMPT, **arguments), MODEL.generate(PROMPT, **arguments)
    assert_steps_equal(found.scores, expected.scores)
    assert_steps_equal(found.logits, expected.logits)
    assert (found.scores[0].gather(1, found.sequences[:, -1:]) > -torch.inf).all()


def test_tokens_are_drawn_as_often_as_their_scores_say():
    """Chi-square with seven degrees of freedom: above 40.5 once in a million seeds, and this seed is fixed."""
    count = 4000
    arguments = {"do_sample": True, "max_new_tokens": 1, "top_k": 8, "num_return_sequences": count}
    found = unspool.generate(MODEL, PROMPT[:1], seed=7, **arguments)[:, -1]
    scores = MODEL.generate(PROMPT[:1], do_sample=True, max_new_tokens=1, top_k=8, **BOTH).scores[0][0]
    expected = scores.softmax(-1) * count
    drawn = torch.bincount(found, minlength=VOCAB_SIZE)
    allowed = expected > 0
    assert allowed.sum() == 8 and drawn[~allowed].sum() == 0
    assert ((drawn - expected)[allowed] ** 2 / expected[allowed]).sum() < 40.5


def test_each_output_of_a_prompt_has_its_own_rows():
    arguments = {"do_sample": True, "max_new_tokens": 6, "num_return_sequences": 3, "seed": 3, "eos_token_id": None}
    found = unspool.generate(MODEL, PROMPT, **arguments, **BOTH)
    assert found.sequences.shape == (6, 11) and all(step.shape == (6, VOCAB_SIZE) for step in found.scores)
    with torch.no_grad():
        logits = MODEL(found.sequences).logits[:, 4:-1]
    torch.testing.assert_close(torch.stack(found.logits, 1), logits, rtol=1e-4, atol=1e-4)


def test_recording_changes_no_token():
    arguments = {"do_sample": True, "max_new_tokens": 12, "seed": (1, 2), "xtc_probability": 0.5, **CONSTRAINTS}
    recorded = unspool.generate(MODEL, PROMPT, num_return_sequences=2, **arguments, **BOTH).sequences
    assert recorded.equal(unspool.generate(MODEL, PROMPT, num_return_sequences=2, **arguments))


def test_rows_that_have_ended_say_that_pads_follow():
    found = unspool.generate(MODEL, PROMPT, max_new_tokens=8, eos_token_id=ends_of_one_row(), pad_token_id=0, **BOTH)
    ended = (found.sequences[:, -1] == 0).nonzero()[:, 0].tolist()
    assert len(ended) == 1
    for last in (found.scores[-1][ended[0]], found.logits[-1][ended[0]]):
        assert last[0] == 0.0 and (last[1:] == -torch.inf).all()
    for normalize in (False, True):
        scores = MODEL.compute_transition_scores(found.sequences, found.scores, normalize_logits=normalize)
        assert scores[ended[0], -1] == 0.0 and scores.isfinite().all()


def ends_of_one_row() -> int:
    """Return a token that greedy search writes early in the first row and not in the second."""
    first, second = MODEL.generate(PROMPT, max_new_tokens=8, eos_token_id=None)[:, 5:].tolist()
    return next(token for token in first[:6] if token not in second)


def test_only_what_is_asked_for_is_kept():
    arguments = {"max_new_tokens": 2, "return_dict_in_generate": True}
    found = unspool.generate(MODEL, PROMPT, output_scores=True, **arguments)
    assert found.logits is None and len(found.scores) == 2
    found = unspool.generate(MODEL, PROMPT, output_logits=True, **arguments)
    assert found.scores is None and len(found.logits) == 2
    found = unspool.generate(MODEL, PROMPT, **arguments)
    assert list(found) == ["sequences"]


def test_rows_become_steps():
    """Outputs of two tokens and of one, a vocabulary of three, pad 1."""
    rows = [[torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])], [torch.tensor([7.0, 8.0, 9.0])]]
    first, second = steps_of(rows, 1, torch.device("cpu"))
    assert first.tolist() == [[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]
    assert second.tolist() == [[4.0, 5.0, 6.0], [-torch.inf, 0.0, -torch.inf]]

"""Scores and logits as transformers' output classes hold them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import unspool
from tests.oracle import is_close, oracle_cases, oracle_model
from tests.tiny_models import CACHE, VOCAB_SIZE, tiny_model
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
    assert list(found) == ["sequences", CACHE]


# --- beams, and every other strategy ---------------------------------------------------------------------------------

BEAMS = [
    {"num_beams": 2},
    {"num_beams": 4, "num_return_sequences": 3},
    {"num_beams": 3, "num_return_sequences": 3, "length_penalty": -0.5, "early_stopping": True},
    {"num_beams": 3, "early_stopping": "never", "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
]


@pytest.mark.parametrize("ends", [None, [*range(30, 45)]], ids=["full", "ending"])
@pytest.mark.parametrize("options", BEAMS, ids=str)
def test_beams_have_the_scores_logits_and_indices_of_transformers(options: dict[str, Any], ends: Any):
    arguments = {"max_new_tokens": 9, "eos_token_id": ends, "pad_token_id": 1, **options, **BOTH}
    found, expected = unspool.generate(MODEL, PROMPT, **arguments), MODEL.generate(PROMPT, **arguments)
    assert found.sequences.equal(expected.sequences)
    assert found.beam_indices.equal(expected.beam_indices) and found.beam_indices.dtype == expected.beam_indices.dtype
    torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
    for normalize in (False, True):
        one, other = (
            MODEL.compute_transition_scores(each.sequences, each.scores, each.beam_indices, normalize_logits=normalize)
            for each in (found, expected)
        )
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    if ends is None:
        assert_steps_equal(found.scores, expected.scores)
        assert_steps_equal(found.logits, expected.logits)


@pytest.mark.parametrize("case", oracle_cases("beam"), ids=lambda case: case["id"])
def test_recorded_scores_of_beams_are_the_sums_of_their_transitions(case: dict[str, Any]):
    model = oracle_model(case["model"])
    ids, mask = torch.tensor(case["input_ids"]), torch.tensor(case["attention_mask"])
    found = unspool.generate(model, ids, attention_mask=mask, **case["kwargs"], do_sample=False, **BOTH)
    sums = model.compute_transition_scores(found.sequences, found.scores, found.beam_indices).sum(1)
    lengths = (found.beam_indices >= 0).sum(1) ** case["kwargs"].get("length_penalty", 1.0)
    for score, expected in zip((sums / lengths).tolist(), case["expected"]["sequences_scores"], strict=True):
        assert is_close(score, expected)


STRATEGIES: list[dict[str, Any]] = [
    {"penalty_alpha": 0.6, "top_k": 4},
    {"prompt_lookup_num_tokens": 3},
    {"do_sample": True, "prompt_lookup_num_tokens": 3, "num_return_sequences": 2},
    {"do_sample": True, "best_of": 4, "num_return_sequences": 2, "xtc_probability": 0.5},
    {"strategy": "stochastic_beam", "num_beams": 3, "num_return_sequences": 2, "do_sample": True},
    {"num_beams": 3, "do_sample": True, "temperature": 1.2},
    {"num_beams": 3, "force_words_ids": [[61], [62, 63]], "num_return_sequences": 2},
    {"guidance_scale": 1.8},
    {"dola_layers": "low"},
]


@pytest.mark.parametrize("options", STRATEGIES, ids=str)
def test_the_rows_of_any_strategy_are_those_its_tokens_were_chosen_from(options: dict[str, Any]):
    """What each row should be is known from a run of the model over what was written."""
    ends = {"max_new_tokens": 8, "eos_token_id": [*range(30, 40)], "pad_token_id": 1, "seed": 4}
    wanted = {"return_dict_in_generate": True, "output_scores": True}
    wanted |= {"output_logits": True} if not {"guidance_scale", "dola_layers"} & options.keys() else {}
    found = unspool.generate(MODEL, PROMPT, **ends, **wanted, **options)
    assert found.sequences.equal(unspool.generate(MODEL, PROMPT, **ends, **options))
    indices = getattr(found, "beam_indices", None)
    scores = MODEL.compute_transition_scores(found.sequences, found.scores, indices)
    assert scores.isfinite().all()
    written = found.sequences[:, 5:]
    lengths = [
        next((n + 1 for n, token in enumerate(row) if token in ends["eos_token_id"]), 8) for row in written.tolist()
    ]
    if indices is not None:
        assert [int((row >= 0).sum()) for row in indices] == lengths
        sums = scores.sum(1) / torch.tensor(lengths)
        torch.testing.assert_close(sums, found.sequences_scores, rtol=1e-4, atol=1e-4)
    if "output_logits" in wanted:
        with torch.no_grad():
            logits = MODEL(found.sequences).logits[:, 4:-1]
        for row, length in enumerate(lengths):
            for step in range(length):
                place = row if indices is None else int(indices[row, step])
                torch.testing.assert_close(found.logits[step][place], logits[row, step], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.5}, "output_scores"),
        ({"guidance_scale": 2.0}, "output_logits"),
        ({"dola_layers": "low"}, "output_logits"),
    ],
    ids=str,
)
def test_what_no_row_stands_for_is_refused_by_name(options: dict[str, Any], option: str):
    with pytest.raises(unspool.OptionError) as caught:
        unspool.generate(MODEL, PROMPT, **options, **BOTH)
    assert caught.value.option == option


def test_rows_become_steps():
    """Outputs of two tokens and of one, a vocabulary of three, pad 1."""
    rows = [[torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])], [torch.tensor([7.0, 8.0, 9.0])]]
    first, second = steps_of(rows, 1, torch.device("cpu"))
    assert first.tolist() == [[1.0, 2.0, 3.0], [7.0, 8.0, 9.0]]
    assert second.tolist() == [[4.0, 5.0, 6.0], [-torch.inf, 0.0, -torch.inf]]

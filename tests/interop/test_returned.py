"""What the caller's functions and objects return is taken in every sensible form, and refused by name in others."""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch

import unspool
from tests.tiny_models import VOCAB_SIZE, tiny_model
from unspool.errors import OptionError

MODEL = tiny_model("llama", seed=5)
PROMPTS = torch.tensor([[11, 12, 13], [14, 15, 16]])
ALLOWED = list(range(0, VOCAB_SIZE, 3))


def refusal(**options: Any) -> OptionError:
    with pytest.raises(OptionError) as caught:
        unspool.generate(MODEL, PROMPTS, max_new_tokens=4, **options)
    return caught.value


def mask_of(ids: list[int]) -> torch.Tensor:
    return torch.zeros(VOCAB_SIZE, dtype=torch.bool).index_fill_(0, torch.tensor(ids), True)


FORMS: dict[str, Callable[[list[int]], Any]] = {
    "list": list,
    "tuple": tuple,
    "range": lambda ids: range(0, VOCAB_SIZE, 3),
    "array": np.array,
    "numpy integers": lambda ids: list(np.array(ids, dtype=np.int32)),
    "tensor": torch.tensor,
    "int32 tensor": lambda ids: torch.tensor(ids, dtype=torch.int32),
    "column": lambda ids: torch.tensor(ids)[:, None],
    "list of tensors": lambda ids: list(torch.tensor(ids)),
    "mask": mask_of,
    "array mask": lambda ids: mask_of(ids).numpy(),
}
FORMS_OF_OURS: dict[str, Callable[[list[int]], Any]] = {
    "set": set,
    "frozenset": frozenset,
    "generator": lambda ids: (token for token in ids),
    "keys": lambda ids: dict.fromkeys(ids).keys(),
}


@pytest.mark.parametrize("beams", [1, 2])
@pytest.mark.parametrize("form", [*FORMS, *FORMS_OF_OURS])
def test_allowed_tokens_come_in_every_form(form: str, beams: int) -> None:
    options: dict[str, Any] = {"max_new_tokens": 4, "num_beams": beams, "eos_token_id": None, "pad_token_id": 0}
    make = {**FORMS, **FORMS_OF_OURS}[form]
    found = unspool.generate(MODEL, PROMPTS, prefix_allowed_tokens_fn=lambda batch, ids: make(ALLOWED), **options)
    theirs = FORMS.get(form, list)
    expected = MODEL.generate(PROMPTS, prefix_allowed_tokens_fn=lambda batch, ids: theirs(ALLOWED), **options)
    assert found.equal(expected)


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "must return token ids, or a boolean mask of the 97 tokens (for prompt 1, at new token 3), got None"),
        (7, "must return token ids, or a boolean mask"),
        ("abc", "must return token ids, or a boolean mask"),
        ({7: 1.0}, "must return token ids, or a boolean mask"),
        ([1.5], "must return token ids, or a boolean mask"),
        ([[1], [2, 3]], "must return token ids, or a boolean mask"),
        (["a"], "must return token ids, or a boolean mask"),
        (torch.tensor(3), "must return token ids, or a boolean mask"),
        (torch.ones(96, dtype=torch.bool), "must return token ids, or a boolean mask"),
        (torch.ones(97), "got 'a tensor of torch.float32 and shape (97,)'"),
        ([3, 97], "must return token ids in [0, 97) (for prompt 1, at new token 3), got 97"),
        ([-1], "must return token ids in [0, 97)"),
        ([], "must allow a token at each step, and allows none (for prompt 1, at new token 3)"),
        (set(), "must allow a token at each step"),
        (torch.zeros(VOCAB_SIZE, dtype=torch.bool), "must allow a token at each step"),
    ],
    ids=str,
)
def test_other_results_of_the_function_are_refused_with_prompt_and_step(returned: Any, message: str) -> None:
    def allowed(batch: int, ids: torch.Tensor) -> Any:
        return returned if batch == 1 and len(ids) == 5 else ALLOWED

    error = refusal(prefix_allowed_tokens_fn=allowed)
    assert error.option == "prefix_allowed_tokens_fn" and message in str(error)


class Named:
    """Calls a function from the second new token on, under a name of its own."""

    def __init__(self, function: Callable[[Any, Any], Any], early: Callable[[Any, Any], Any]) -> None:
        self._function, self._early = function, early

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        return (self._function if input_ids.shape[1] > 3 + (scores is None) else self._early)(input_ids, scores)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: None, "must hold objects that return floating-point scores of shape (2, 97) (at new token 2)"),
        (lambda scores: scores[:1], "shape (1, 97)"),
        (lambda scores: scores.numpy(), "return floating-point scores of shape (2, 97)"),
        (lambda scores: scores.long(), "a tensor of torch.int64"),
        (lambda scores: scores * float("nan"), "must hold objects that return numbers and -inf (at new token 2)"),
        (lambda scores: scores + float("inf"), "NaN or +inf"),
    ],
)
def test_a_processor_that_returns_no_scores_is_named_with_the_step(change: Any, message: str) -> None:
    broken = Named(lambda ids, scores: change(scores), lambda ids, scores: scores)
    error = refusal(logits_processor=[lambda ids, scores: scores - 1.0, broken])
    assert error.option == "logits_processor" and "fix Named" in str(error) and message in str(error)


@pytest.mark.parametrize(
    "said", [None, "yes", 0.5, [0.0, 1.0], {}, torch.zeros(3), np.zeros((2, 2), dtype=bool)], ids=str
)
def test_a_criterion_that_returns_no_verdicts_is_named_with_the_step(said: Any) -> None:
    criterion = Named(lambda ids, scores: said, lambda ids, scores: False)
    error = refusal(stopping_criteria=[criterion])
    expected = r"must hold objects that return one boolean for each of the 2 rows \(at new token 2\).*fix Named"
    assert error.option == "stopping_criteria" and re.search(expected, str(error))


@pytest.mark.parametrize(
    "said",
    [True, np.bool_(True), 1, [True, True], torch.tensor(True), torch.ones(2, dtype=torch.int64), np.ones(2, bool)],
    ids=str,
)
def test_verdicts_come_in_every_form(said: Any) -> None:
    found = unspool.generate(MODEL, PROMPTS, max_new_tokens=4, stopping_criteria=[lambda ids, scores: said])
    assert found.shape == (2, 4)


def test_the_failure_of_one_call_leaves_others_alone() -> None:
    expected = unspool.generate(MODEL, PROMPTS, max_new_tokens=20)
    broken = {"prefix_allowed_tokens_fn": lambda batch, ids: None if len(ids) > 5 else ALLOWED}

    def run(index: int) -> Any:
        if index % 2:
            return refusal(**broken) if index % 4 == 1 else refusal(logits_processor=[lambda ids, scores: None])
        return unspool.generate(MODEL, PROMPTS, max_new_tokens=20)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(run, range(8)))
    assert all(each.equal(expected) for each in found[::2])

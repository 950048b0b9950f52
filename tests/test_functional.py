"""Pure functions on logits: worked examples, transformers' warpers, and whole loops of one's own."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

import unspool
from tests.tiny_models import tiny_model
from unspool import OptionError
from unspool import functional as F

INF = math.inf


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities).log()


def kept(logits: torch.Tensor) -> list[int]:
    return (logits > -INF).nonzero()[:, 0].tolist()


def test_greedy_worked_example() -> None:
    assert F.greedy(torch.tensor([1.0, 3, 3, 0])).item() == 1


def test_temperature_worked_example() -> None:
    assert F.temperature(torch.tensor([2.0, 1, -INF]), 0.5).tolist() == [4, 2, -INF]


def test_top_k_worked_example() -> None:
    assert F.top_k(torch.tensor([1.0, 3, 2, 2, 0]), 2).tolist() == [-INF, 3, 2, 2, -INF]


def test_top_p_worked_example() -> None:
    assert kept(F.top_p(logs(0.1, 0.6, 0.3), 0.8)) == [1, 2]


def test_min_p_worked_example() -> None:
    assert kept(F.min_p(logs(0.5, 0.3, 0.15, 0.05), 0.4)) == [0, 1]


def test_repetition_penalty_worked_example() -> None:
    assert F.repetition_penalty(torch.tensor([3.0, -1, 2]), [0, 1, 1], 2).tolist() == [1.5, -2, 2]


def test_sample_worked_example() -> None:
    """Fails by chance once in 10**9 runs of other seeds: six deviations of 10,000 draws."""
    rows = torch.tensor([0.0, -INF, math.log(3)]).expand(10_000, 3)
    for options in ({"generator": torch.Generator().manual_seed(0)}, {"seed": 0, "position": 5}):
        counts = F.sample(rows, **options).bincount(minlength=3).tolist()
        assert counts[1] == 0
        assert abs(counts[0] - 2500) < 6 * math.sqrt(10_000 * 0.25 * 0.75)


WARPERS: dict[str, tuple[Callable[[torch.Tensor], torch.Tensor], Any]] = {
    "temperature 0.7": (lambda rows: F.temperature(rows, 0.7), TemperatureLogitsWarper(0.7)),
    "temperature 1.0": (lambda rows: F.temperature(rows, 1.0), TemperatureLogitsWarper(1.0)),
    "top_k 1": (lambda rows: F.top_k(rows, 1), TopKLogitsWarper(1)),
    "top_k 50": (lambda rows: F.top_k(rows, 50), TopKLogitsWarper(50)),
    "top_k 9999": (lambda rows: F.top_k(rows, 9999), TopKLogitsWarper(9999)),
    "top_k 3 of 7": (lambda rows: F.top_k(rows, 3, min_tokens_to_keep=7), TopKLogitsWarper(3, min_tokens_to_keep=7)),
    "top_p 0.05": (lambda rows: F.top_p(rows, 0.05), TopPLogitsWarper(0.05)),
    "top_p 0.92": (lambda rows: F.top_p(rows, 0.92), TopPLogitsWarper(0.92)),
    "top_p 0.1 of 7": (lambda rows: F.top_p(rows, 0.1, min_tokens_to_keep=7), TopPLogitsWarper(0.1, -INF, 7)),
    "min_p 0.1": (lambda rows: F.min_p(rows, 0.1), MinPLogitsWarper(0.1)),
    "min_p 0.9 of 7": (lambda rows: F.min_p(rows, 0.9, min_tokens_to_keep=7), MinPLogitsWarper(0.9, -INF, 7)),
}


@pytest.mark.parametrize("name", WARPERS)
@pytest.mark.parametrize("vocab", [11, 500, 5000])
def test_a_function_is_the_warper_of_transformers(name: str, vocab: int) -> None:
    ours, theirs = WARPERS[name]
    rows = torch.randn(6, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    rows[2, : vocab // 2] = -INF
    before = rows.clone()
    assert torch.equal(ours(rows), theirs(None, rows.clone()))
    assert torch.equal(rows, before), "the argument was changed"
    for row in (0, 2):
        assert torch.equal(ours(rows[row]), ours(rows)[row])
    assert torch.equal(ours(rows.view(2, 3, vocab)), ours(rows).view(2, 3, vocab))


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.3])
def test_the_penalty_is_transformers(penalty: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows, ids = torch.randn(4, 50, generator=generator), torch.randint(50, (4, 30), generator=generator)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(ids, rows.clone())
    assert torch.equal(F.repetition_penalty(rows, ids, penalty), expected)
    ragged = [ids[0].tolist(), [], ids[2, :3].tolist(), [7]]
    found = F.repetition_penalty(rows, ragged, penalty)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], rows[1])
    assert torch.equal(F.repetition_penalty(rows[0], ids[0], penalty), expected[0])


def test_what_is_cut_is_found_by_id_and_the_crossing_token_stays() -> None:
    """Two mistakes that loops in circulation make: cutting by rank without ids, and cutting the crossing token too."""
    assert kept(F.top_p(logs(0.05, 0.15, 0.5, 0.3), 0.6)) == [2, 3]
    assert kept(F.top_p(logs(0.05, 0.95), 0.5)) == [1]
    assert kept(F.top_p(logs(0.25, 0.5, 0.25), 0.75)) == [0, 1]  # reached exactly: nothing crosses any more


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_result_is_float32_without_gradients(dtype: torch.dtype) -> None:
    logits = torch.randn(3, 20, dtype=dtype, requires_grad=True)
    for found in (F.temperature(logits, 2.0), F.top_k(logits, 0), F.top_p(logits, 1.0), F.min_p(logits, 0.5)):
        assert found.dtype == torch.float32 and not found.requires_grad and found.shape == logits.shape
    assert F.greedy(logits).dtype == F.sample(logits).dtype == torch.int64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: F.temperature(x, 0), r"`temperature` must be above 0 here, got 0; use functional\.greedy"),
        (lambda x: F.temperature(x, -1.0), r"`temperature` must be.*got -1\.0; leave out functional\.temperature"),
        (lambda x: F.top_k(x, -1), "`top_k` must be an integer of at least 0"),
        (lambda x: F.top_k(x, None), "`top_k` must be an integer"),
        (lambda x: F.top_p(x, 0.0), r"`top_p` must be in \(0, 1\]"),
        (lambda x: F.top_p(x, 1.1), r"`top_p` must be in \(0, 1\]"),
        (lambda x: F.min_p(x, 2.0), r"`min_p` must be in \[0, 1\]"),
        (lambda x: F.top_k(x, 5, min_tokens_to_keep=0), "`min_tokens_to_keep` must be an integer of at least 1"),
        (lambda x: F.repetition_penalty(x, [[1], [2]], 1.2), "`tokens` must be one sequence per row"),
        (lambda x: F.repetition_penalty(x, [[1], [2], [20]], 1.2), r"`tokens` must hold token ids in \[0, 20\)"),
        (lambda x: F.repetition_penalty(x, [[1], [2], [3]], 0.0), "`repetition_penalty` must be"),
        (lambda x: F.top_k(x.long(), 5), "`logits` must be a floating tensor"),
        (lambda x: F.top_k(x[0, 0], 5), "`logits` must be a floating tensor"),
        (lambda x: F.greedy(torch.full((2, 3), -INF)), "`logits` must have a finite.*got -inf; forbid fewer"),
        (
            lambda x: F.sample(torch.tensor([1.0, math.nan])),
            "`logits` must have.*got nan; check the model's weights and dtype",
        ),
        (lambda x: F.sample(torch.tensor([1.0, INF])), "`logits` must have.*got inf"),
        (lambda x: F.sample(x, seed=3), "`seed` is read only together with `position`"),
        (lambda x: F.sample(x, prompt=[1]), "`prompt` is read only together with `seed`"),
        (lambda x: F.sample(x, position=3), "`position` is read only together with `seed`"),
        (lambda x: F.sample(x, seed=3, position=1, generator=torch.Generator()), "`seed` cannot be given together"),
    ],
)
def test_what_cannot_be_done_is_refused(call: Callable[[torch.Tensor], Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        call(torch.randn(3, 20))


def test_a_greedy_loop_is_transformers_generate() -> None:
    model = tiny_model("gpt2")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    expected = model.generate(ids, max_new_tokens=12, do_sample=False, repetition_penalty=1.3, eos_token_id=None)
    while ids.shape[1] < 15:
        logits = model(ids).logits[:, -1]
        ids = torch.cat([ids, F.greedy(F.repetition_penalty(logits, ids, 1.3))[:, None]], dim=1)
    assert torch.equal(ids, expected)


def test_a_sampling_loop_draws_what_transformers_draws_from_the_same_generator() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7], [8, 9, 10]])
    options = {"do_sample": True, "temperature": 0.8, "top_k": 30, "top_p": 0.9, "eos_token_id": None}
    torch.manual_seed(0)
    expected = model.generate(ids, max_new_tokens=12, **options)
    torch.manual_seed(0)
    while ids.shape[1] < 15:
        logits = F.temperature(model(ids).logits[:, -1], 0.8)
        ids = torch.cat([ids, F.sample(F.top_p(F.top_k(logits, 30), 0.9))[:, None]], dim=1)
    assert torch.equal(ids, expected)


def test_a_seeded_loop_draws_what_the_engine_draws() -> None:
    model = tiny_model("llama")
    ids = torch.tensor([[5, 6, 7]] * 3)
    options = {"temperature": 0.8, "min_p": 0.05, "max_new_tokens": 12, "ignore_eos": True}
    expected = unspool.load(model).generate([5, 6, 7], seed=11, num_return_sequences=3, **options)
    while ids.shape[1] < 15:
        logits = F.min_p(F.temperature(model(ids).logits[:, -1], 0.8), 0.05)
        ids = torch.cat([ids, F.sample(logits, seed=11, position=ids.shape[1], prompt=[5, 6, 7])[:, None]], dim=1)
    assert [tuple(row) for row in ids[:, 3:].tolist()] == [each.token_ids for each in expected.completions]

"""Soft limits: requests wait for each other, and one that alone needs more runs alone and is never refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from tests.toys import mixing_toy, request, results, run_alone
from unspool.engine import Engine, Request
from unspool.engine.request import LockstepGroup
from unspool.engines import driver_of
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.kv import limits
from unspool.runtimes.toy import ToyRuntime
from unspool.types import Event

SEQUENCES, TOKENS = {"soft_max_sequences": 3}, {"soft_max_tokens": 30}
DRAWS: dict[str, Any] = {"do_sample": True, "ignore_eos": True}


def limited_toy(**soft: int) -> ToyRuntime:
    runtime = mixing_toy()
    runtime.info = replace(runtime.info, **soft)
    return runtime


def most_held(runtime: ToyRuntime, requests: list[Request], other: ToyRuntime | None = None) -> list[tuple[int, int]]:
    """Run requests to their end; returns (live sequences, cached tokens) after each step. Checks every result."""
    engine = Engine(runtime)
    numbers = [engine.submit(each) for each in requests]
    events: list[Event] = []
    held = []
    for _ in range(1000):
        if engine.idle:
            break
        events += engine.step()
        engine.check()
        watched = other or runtime
        held.append((len(watched.cached), sum(map(len, watched.cached.values()))))
    assert engine.idle and not runtime.cached
    found = results(events)
    for number, wanted in zip(numbers, requests, strict=True):
        alone = run_alone(mixing_toy, replace(wanted, lockstep_group=None))
        assert [each.token_ids for each in found[number]] == [each.token_ids for each in alone]  # type: ignore[union-attr]
    return held


@pytest.mark.parametrize("soft", [SEQUENCES, TOKENS])
def test_requests_within_the_limit_share_it_and_the_others_wait(soft: dict[str, int]) -> None:
    requests = [request([number % 16, 1], seed=number, max_new_tokens=8, **DRAWS) for number in range(10)]
    held = most_held(limited_toy(**soft), requests)
    assert max(sequences for sequences, _ in held) == 3


@pytest.mark.parametrize("soft", [SEQUENCES, TOKENS])
@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_request_that_needs_more_than_the_limit_runs_alone(soft: dict[str, int], place: int) -> None:
    requests = [request([number, 1], seed=number, max_new_tokens=8, **DRAWS) for number in range(4)]
    requests.insert(place, request([9, 1], max_new_tokens=8, num_return_sequences=7, **DRAWS))
    held = most_held(limited_toy(**soft), requests)
    assert max(sequences for sequences, _ in held) == 7


def test_requests_in_step_that_need_more_than_the_limit_run_alone_together() -> None:
    lockstep_group = LockstepGroup()
    requests = [
        replace(request([number, 1], max_new_tokens=4, **DRAWS), lockstep_group=lockstep_group) for number in range(5)
    ]
    requests.append(request([9, 1], max_new_tokens=4, **DRAWS))
    assert max(held for held, _ in most_held(limited_toy(**SEQUENCES), requests)) == 5


@pytest.mark.parametrize("own_draft", [True, False])
def test_the_draft_model_has_limits_of_its_own_and_a_model_that_drafts_for_itself_counts_both(own_draft: bool) -> None:
    runtime = limited_toy(**SEQUENCES)
    draft = runtime if own_draft else limited_toy(soft_max_sequences=2)
    requests = [
        request([number, 1], seed=number, own={"assistant": draft}, num_assistant_tokens=2, max_new_tokens=8, **DRAWS)
        for number in range(5)
    ]
    assert max(held for held, _ in most_held(runtime, requests, draft)) == 2


def test_load_and_the_drop_in_limit_sequences_and_memory_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two layers of 2 x 32 float32 numbers a token, at most twice that in slots, in half of the free memory."""
    monkeypatch.setattr(limits, "free_memory", lambda device: 4096 * 512)
    model = tiny_model("gpt2")
    per_token = unspool.load(model).info.bytes_per_token
    assert per_token == 512
    for info in (unspool.load(model).info, driver_of(model).engine.runtime.info):
        assert (info.soft_max_sequences, info.soft_max_tokens) == (256, 1024)
        assert info.max_sequences is info.max_tokens is None
    pipeline = unspool.pipeline("text-generation", max_sequences=None)
    assert pipeline.model.info.soft_max_sequences is None and pipeline.model.info.soft_max_tokens is not None


def test_none_lifts_a_limit_and_a_number_is_a_hard_one() -> None:
    info = unspool.load(tiny_model("gpt2"), max_sequences=None, max_cache_tokens=None).info
    assert info.max_sequences is info.max_tokens is info.soft_max_sequences is info.soft_max_tokens is None
    info = unspool.load(tiny_model("gpt2"), max_sequences=5, max_cache_tokens=99).info
    assert (info.max_sequences, info.max_tokens, info.soft_max_sequences, info.soft_max_tokens) == (5, 99, None, None)


@pytest.mark.parametrize(
    ("model", "has_tokens"),
    [
        (tiny_model("bloom"), True),
        (tiny_model("openai"), False),
        (tiny_seq2seq("t5"), True),
        (tiny_model("mamba"), True),
    ],
    ids=["general", "recomputation", "encoder-decoder", "state"],
)
def test_every_path_has_the_default_limits(model: Any, has_tokens: bool) -> None:
    info = runtime_of(model, owns_model=True, max_sequences="auto", max_cache_tokens="auto").info
    assert info.soft_max_sequences == 256
    assert (info.soft_max_tokens is not None) == has_tokens


def test_where_nothing_says_how_much_memory_is_free_sequences_alone_are_limited() -> None:
    found = limits.limits_of("auto", "auto", bytes_per_token=8, device=torch.device("meta"))
    assert found == limits.Limits(soft_max_sequences=256)

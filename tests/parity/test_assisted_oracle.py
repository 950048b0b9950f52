"""Assisted decoding and prompt lookup on real models: recorded runs of transformers, and plain decoding of our own."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import pytest
import torch

from tests.oracle import oracle_cases, oracle_model, real_prompts
from tests.sampling import sampled
from tests.tiny_models import VOCAB_SIZE, tiny_model
from tests.toys import drain, request, results
from unspool.engine import Engine
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.strategies.assisted import Assisted
from unspool.types import Output

ASSISTED, LOOKUP = oracle_cases("assisted"), oracle_cases("prompt_lookup")
FAMILIES = ("gpt2", "llama", "gemma2", "qwen2")


@cache
def recorded(name: str) -> DecoderRuntime:
    return DecoderRuntime(oracle_model(name), owns_model=False)


@cache
def tiny(family: str) -> DecoderRuntime:
    return DecoderRuntime(tiny_model(family, seed=7), owns_model=True)


@cache
def tiny_draft(family: str) -> DecoderRuntime:
    """Return a model that mostly agrees with `tiny`: the same weights, moved a little."""
    model = copy.deepcopy(tiny_model(family, seed=7))
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.004)
    return DecoderRuntime(model, owns_model=True)


def run_together(runtime: DecoderRuntime, draft: DecoderRuntime | None, wanted: list[Any]) -> tuple[list[Any], Engine]:
    """Run requests side by side; both runtimes are empty afterwards."""
    engine = Engine(runtime)
    numbers = [engine.submit(each) for each in wanted]
    outcome = results(drain(engine))
    for each in (runtime, draft):
        assert each is None or not each._slots.live, "sequences were left"
    return [outcome[number] for number in numbers], engine


def test_the_oracle_has_both_kinds_for_each_model() -> None:
    assert {case["model"] for case in ASSISTED} == {case["model"] for case in LOOKUP} == {"gpt2", "llama", "gpt_neox"}


@pytest.mark.parametrize("case", ASSISTED + LOOKUP, ids=lambda case: case["id"])
def test_the_recorded_tokens_are_written(case: dict[str, Any]) -> None:
    runtime = recorded(case["model"])
    draft = recorded(case["assistant"]) if case["assistant"] else None
    own = {"strategy": Assisted(), "assistant": draft}
    wanted = [request(prompt, own=own, **case["kwargs"], do_sample=False) for prompt in real_prompts(case)]
    found, engine = run_together(runtime, draft, wanted)
    assert [list(outputs[0].token_ids) for outputs in found] == case["expected"]["completions"]
    assert (engine.timing.draft_passes > 0) is (draft is not None)


def draw_request(number: int) -> tuple[str, list[int], dict[str, Any], dict[str, Any]]:
    """Return a family, a prompt, options of plain decoding, and those of drafting; the same ones in every run."""
    rng = random.Random(number)
    prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, 8))] * rng.choice((1, 2))
    options: dict[str, Any] = {"max_new_tokens": rng.choice((1, 2, 12, 25)), "batch_invariant": True}
    if rng.random() < 0.8:
        options |= {"do_sample": True, "num_return_sequences": rng.choice((1, 2, 3))}
        options |= rng.choice(
            ({}, {"temperature": 0.6}, {"top_p": 0.8}, {"min_p": 0.1, "temperature": 1.4}, {"top_k": 9})
        )
    options |= rng.choice(({}, {"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2}, {"eos_token_id": [5, 9, 14]}))
    drafting = {"num_assistant_tokens": rng.randint(1, 6), "assistant_confidence_threshold": rng.choice((0.0, 0.4))}
    return rng.choice(FAMILIES), prompt, options, drafting


@pytest.mark.parametrize("number", sampled(range(400), 24))
def test_speculation_writes_what_plain_decoding_writes(number: int) -> None:
    family, prompt, options, drafting = draw_request(number)
    runtime, draft = tiny(family), tiny_draft(family)
    plain, _ = run_together(runtime, None, [request(prompt, seed=number, **options)])
    own = {"strategy": Assisted()}
    wanted = [
        request(prompt, seed=number, own=own | {"assistant": draft}, **options, **drafting),
        request(prompt, seed=number, own=own, **options, prompt_lookup_num_tokens=drafting["num_assistant_tokens"]),
    ]
    for outputs in run_together(runtime, draft, wanted)[0]:
        assert tokens_of(outputs) == tokens_of(plain[0])


def tokens_of(outputs: tuple[Output, ...]) -> list[tuple[tuple[int, ...], str]]:
    return [(output.token_ids, output.finish_reason) for output in outputs]


@pytest.mark.parametrize("do_sample", [False, True])
def test_a_similar_draft_saves_passes(do_sample: bool) -> None:
    runtime, draft = tiny("llama"), tiny_draft("llama")
    options: dict[str, Any] = {
        "max_new_tokens": 40,
        "do_sample": do_sample,
        "ignore_eos": True,
        "batch_invariant": True,
    }
    own = {"strategy": Assisted(), "assistant": draft}
    plain, _ = run_together(runtime, None, [request([5, 6, 7], seed=1, **options)])
    found, engine = run_together(runtime, draft, [request([5, 6, 7], seed=1, own=own, **options)])
    assert tokens_of(found[0]) == tokens_of(plain[0])
    assert engine.timing.passes < 25

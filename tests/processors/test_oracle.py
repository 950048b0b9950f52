"""Recorded inputs and outputs of transformers' processor classes, replayed through ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from tests.processors.support import applied, context, state_of
from unspool.processors import PROCESSORS

CASES = json.loads((Path(__file__).parent / "data" / "processor_cases.json").read_text())


class Plan(NamedTuple):
    """Which processor, with which options and request, and how many of the ids are prompt (None: all)."""

    name: str
    options: dict[str, Any]
    request: dict[str, Any] = {}
    prompt_length: int | None = None


def truncation(name: str, argument: str | None = None) -> Callable[[dict[str, Any]], Plan]:
    def plan(kwargs: dict[str, Any]) -> Plan:
        return Plan(name, {name: kwargs[argument or name]}, {"min_tokens_to_keep": kwargs.get("min_tokens_to_keep", 1)})

    return plan


PLANS: dict[str, Callable[[dict[str, Any]], Plan]] = {
    "TemperatureLogitsWarper": truncation("temperature"),
    "TopKLogitsWarper": truncation("top_k"),
    "TopPLogitsWarper": truncation("top_p"),
    "MinPLogitsWarper": truncation("min_p"),
    "TypicalLogitsWarper": truncation("typical_p", "mass"),
    "EpsilonLogitsWarper": truncation("epsilon_cutoff", "epsilon"),
    "EtaLogitsWarper": truncation("eta_cutoff", "epsilon"),
    "TopHLogitsWarper": truncation("top_h"),
    "RepetitionPenaltyLogitsProcessor": lambda k: Plan(
        "repetition_penalty",
        {"repetition_penalty": k["penalty"], "prompt_ignore_length": k.get("prompt_ignore_length")},
    ),
    "NoRepeatNGramLogitsProcessor": lambda k: Plan(
        "no_repeat_ngram_size", {"no_repeat_ngram_size": k["ngram_size"]}, prompt_length=4
    ),
    "EncoderNoRepeatNGramLogitsProcessor": lambda k: Plan(
        "encoder_no_repeat_ngram_size", {"encoder_no_repeat_ngram_size": k["encoder_ngram_size"]}, prompt_length=0
    ),
    "EncoderRepetitionPenaltyLogitsProcessor": lambda k: Plan(
        "encoder_repetition_penalty", {"encoder_repetition_penalty": k["penalty"]}, prompt_length=0
    ),
    "NoBadWordsLogitsProcessor": lambda k: Plan(
        "bad_words_ids", {"bad_words_ids": k["bad_words_ids"]}, {"eos": [k["eos_token_id"]]}
    ),
    "SequenceBiasLogitsProcessor": lambda k: Plan("sequence_bias", {"sequence_bias": k["sequence_bias"]}),
    "ExponentialDecayLengthPenalty": lambda k: Plan(
        "exponential_decay_length_penalty",
        {"exponential_decay_length_penalty": k["exponential_decay_length_penalty"]},
        {"eos": k["eos_token_id"] if isinstance(k["eos_token_id"], list) else [k["eos_token_id"]]},
        k["input_ids_seq_length"],
    ),
    "MinLengthLogitsProcessor": lambda k: Plan(
        "min_length", {"min_length": k["min_length"]}, {"eos": k["eos_token_id"]}, 5
    ),
    "MinNewTokensLengthLogitsProcessor": lambda k: Plan(
        "min_new_tokens", {"min_new_tokens": k["min_new_tokens"]}, {"eos": [k["eos_token_id"]]}, 9
    ),
    "ForcedEOSTokenLogitsProcessor": lambda k: Plan(
        "forced_eos_token_id",
        {"forced_eos_token_id": k["eos_token_id"]},
        {"max_new_tokens": k["max_length"] - 7},
        7,
    ),
    "ForcedBOSTokenLogitsProcessor": lambda k: Plan("forced_bos_token_id", {"forced_bos_token_id": k["bos_token_id"]}),
    "SuppressTokensLogitsProcessor": lambda k: Plan("suppress_tokens", {"suppress_tokens": k["suppress_tokens"]}),
    "SuppressTokensAtBeginLogitsProcessor": lambda k: Plan(
        "begin_suppress_tokens", {"begin_suppress_tokens": k["begin_suppress_tokens"]}
    ),
    "LogitNormalization": lambda k: Plan("renormalize_logits", {"renormalize_logits": True}),
}


def matrix(rows: list[list[float | None]]) -> torch.Tensor:
    return torch.tensor([[float("-inf") if score is None else score for score in row] for row in rows])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["id"])
def test_recorded_case(case: dict[str, Any]):
    plan, logits = PLANS[case["processor"]](case["kwargs"]), matrix(case["logits"])
    expected = matrix(case["expected"]["scores"])
    if plan.options == {"top_p": 1.0}:  # off with us, and without effect with them
        assert PROCESSORS["top_p"].start(context(top_p=1.0)) is None
        assert torch.equal(expected, logits)
        return
    states = []
    for row, ids in enumerate(case["input_ids"]):
        split = len(ids) if plan.prompt_length is None else plan.prompt_length
        source = case["kwargs"].get("encoder_input_ids")
        prompt = source[row] if source else ids[:split]
        request = context(prompt, vocab_size=logits.shape[1], **plan.request, **plan.options)
        states.append(state_of(plan.name, request, ids[split:]))
    torch.testing.assert_close(applied(plan.name, states, logits), expected)

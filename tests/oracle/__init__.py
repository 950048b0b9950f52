"""Recorded outputs of transformers on tiny random models: the yardstick of parity.

`models/` holds three decoder-only models and two encoder-decoders, and a draft of each; `cases.json` and
`seq2seq_cases.json` hold the cases: one call of `generate` each, with what transformers 5.23 returned (4.48 for the
strategies that 5.x has dropped). In a case:

    input_ids, attention_mask           left-padded prompts; right-padded sources of encoder-decoders
    decoder_input_ids                   the decoder's prompts, where they are not its start token alone
    kwargs                              to be passed on as they are, with do_sample=False
    expected.sequences                  prompt, new tokens, pads
    expected.completions                new tokens alone, cut behind the first end of sequence
    expected.sequences_scores           beams: sum of log-probabilities / generated length ** length_penalty
    expected.transition_scores          score of each new token; for greedy also `transition_scores_normalized`
    expected.step_scores_top5           step by step, row by row: the five best [token, score]; null is -inf

Cases whose tokens depend on less than noise of 1e-4 on the logits were left out when they were made, so tokens are
compared exactly, and scores within 1e-4 * max(1, |score|).
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

FOLDER = Path(__file__).parent
CASES: list[dict[str, Any]] = json.loads((FOLDER / "cases.json").read_text())
SEQ2SEQ_CASES: list[dict[str, Any]] = json.loads((FOLDER / "seq2seq_cases.json").read_text())


def oracle_cases(*strategies: str) -> list[dict[str, Any]]:
    """Return the cases of these strategies, all of them for none; `case["id"]` names one."""
    return [case for case in CASES if not strategies or case["strategy"] in strategies]


def seq2seq_cases(*strategies: str) -> list[dict[str, Any]]:
    """Return the encoder-decoder cases of these strategies, all of them for none."""
    return [case for case in SEQ2SEQ_CASES if not strategies or case["strategy"] in strategies]


@cache
def oracle_model(name: str) -> PreTrainedModel:
    """Return a model of `models/` by the name that a case has for it; the same object for every call."""
    if name.removesuffix("-draft") in ("t5", "bart"):
        return AutoModelForSeq2SeqLM.from_pretrained(FOLDER / "models" / name).eval()
    return AutoModelForCausalLM.from_pretrained(FOLDER / "models" / name).eval()


def real_prompts(case: dict[str, Any]) -> list[list[int]]:
    """Return a case's prompts (an encoder-decoder's sources) without their pads."""
    return [
        [token for token, real in zip(ids, mask, strict=True) if real]
        for ids, mask in zip(case["input_ids"], case["attention_mask"], strict=True)
    ]


def is_close(found: float, expected: float | None) -> bool:
    """Return whether a score is the recorded one, None standing for -inf."""
    if expected is None:
        return found == -math.inf
    return abs(found - expected) <= 1e-4 * max(1.0, abs(expected))

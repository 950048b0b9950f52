"""`logprob` means one thing for every strategy: the sum of the model's own log-probabilities, by its own forward."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.results import Completion
from unspool.strategies import STRATEGIES

MODEL = tiny_model("llama")
SHAPED: dict[str, Any] = {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.3, "seed": 2}
BEAMS: dict[str, Any] = {"num_beams": 3, "num_return_sequences": 2}
RUNS: dict[str, dict[str, Any]] = {
    "greedy": {"repetition_penalty": 1.3},
    "sample": {**SHAPED, "num_return_sequences": 3},
    "beam": {**BEAMS, "length_penalty": 0.5, "no_repeat_ngram_size": 2},
    "beam_sample": {**BEAMS, **SHAPED},
    "diverse_beam": {"num_beams": 4, "num_beam_groups": 2, "diversity_penalty": 0.8, "num_return_sequences": 2},
    "constrained_beam": {**BEAMS, "force_words_ids": [[9, 4], [[7], [8, 3]]]},
    "contrastive": {"penalty_alpha": 0.6, "top_k": 4},
    "assisted": {**SHAPED, "assistant_model": tiny_model("llama", seed=3), "num_return_sequences": 2},
    "dola": {"dola_layers": "high", **SHAPED},
    "best_of": {"best_of": 4, "num_return_sequences": 2, **SHAPED},
    "stochastic_beam": {"strategy": "stochastic_beam", **BEAMS, **SHAPED},
}
MORE: dict[str, dict[str, Any]] = {
    "lookup": {"prompt_lookup_num_tokens": 3},
    "mbr": {"best_of": 4, "best_of_by": "mbr", **SHAPED},
    "guided": {"guidance_scale": 1.7, "negative_prompt": [3, 4]},
    "guided beams": {**BEAMS, "guidance_scale": 1.7},
    "guided contrast": {"penalty_alpha": 0.6, "top_k": 4, "guidance_scale": 1.7, "dola_layers": None},
    "dola beams": {"dola_layers": "low", "guidance_scale": 1.5},
    "forced": {"forced_bos_token_id": 11, "forced_eos_token_id": 12, "suppress_tokens": [1, 2]},
    "logprobs": {"logprobs": 2, **BEAMS},
}
PROMPT = [5, 6, 7, 5, 6]
EOS = [2, 30, 31, 32, 33, 34, 35, 36]


def own_logprobs(model: Any, ids: list[int], start: int, **source: Any) -> list[float]:
    """Return the model's own log-probabilities of the tokens from `start` on, by transformers' forward."""
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        logits = model(**(source | {"decoder_input_ids": tokens} if source else {"input_ids": tokens})).logits[0]
    found = logits.double().log_softmax(-1)[start - 1 : -1].gather(-1, tokens[0, start:, None])
    return [float(value) for value in found[:, 0]]


def check(completion: Completion, expected: list[float]) -> None:
    assert completion.logprobs == pytest.approx(expected, abs=1e-4)
    assert completion.logprob == pytest.approx(sum(expected), abs=1e-3)
    assert completion.mean_logprob == completion.logprob / len(completion.token_ids)
    plain = json.loads(completion.to_json())
    assert (plain["logprob"], plain["mean_logprob"]) == (completion.logprob, completion.mean_logprob)


def test_the_table_of_this_file_has_every_strategy() -> None:
    missing = RUNS.keys() ^ set(STRATEGIES)
    assert not missing, f"add a call that uses {sorted(missing)} to RUNS"


@pytest.mark.parametrize("name", [*RUNS, *MORE])
def test_it_is_the_sum_of_the_models_own_log_probabilities(name: str) -> None:
    options = (RUNS | MORE)[name] | {"max_new_tokens": 12, "eos_token_id": EOS}
    result = unspool.load(MODEL).generate(PROMPT, trace=True, **options)
    if name in RUNS:
        assert result.strategy == name
    assert result.trace is not None
    for completion, traced in zip(result.completions, result.trace.outputs, strict=True):
        check(completion, own_logprobs(MODEL, [*PROMPT, *completion.token_ids], len(PROMPT)))
        assert traced.logprob == pytest.approx(completion.logprob, abs=1e-9)
        assert traced.score == completion.score


def test_an_end_of_sequence_token_counts() -> None:
    result = unspool.load(MODEL).generate(PROMPT, eos_token_id=list(range(0, 90, 2)), max_new_tokens=12)
    completion = result.completions[0]
    assert completion.finish_reason == "eos"
    check(completion, own_logprobs(MODEL, [*PROMPT, *completion.token_ids], len(PROMPT)))


@pytest.mark.parametrize("options", [{}, BEAMS, SHAPED, {"penalty_alpha": 0.6, "top_k": 4}])
def test_it_is_the_decoders_for_a_model_with_an_encoder(options: dict[str, Any]) -> None:
    model = tiny_seq2seq("t5")
    result = unspool.load(model).generate(PROMPT, max_new_tokens=8, **options)
    start = list(result.prompt_token_ids)
    for completion in result.completions:
        ids = [*start, *completion.token_ids]
        check(completion, own_logprobs(model, ids, len(start), input_ids=torch.tensor([PROMPT])))


def test_a_score_is_what_the_strategy_ranks_by() -> None:
    """The table of units in docs/strategies.md."""
    lm = unspool.load(MODEL)
    options = {"max_new_tokens": 6, "ignore_eos": True}
    summed = [RUNS["greedy"], RUNS["sample"], RUNS["assisted"], RUNS["contrastive"], RUNS["dola"]]
    for each in summed:
        for completion in lm.generate(PROMPT, **options, **each).completions:
            assert completion.score == pytest.approx(completion.logprob, abs=1e-4)
    for length_penalty in (0.0, 0.5, 1.0):
        for completion in lm.generate(PROMPT, **options, **BEAMS, length_penalty=length_penalty).completions:
            assert completion.score == pytest.approx(completion.logprob / 6**length_penalty, abs=1e-4)
    for completion in lm.generate(PROMPT, best_of=3, seed=1, **options).completions:
        assert completion.score == pytest.approx(completion.mean_logprob, abs=1e-4)
    plain = lm.generate(PROMPT, strategy="stochastic_beam", seed=1, **BEAMS, **options)
    for completion in plain.completions:
        assert completion.score == pytest.approx(completion.logprob, abs=1e-4)
    assert all(math.isfinite(completion.score) for completion in plain.completions)

"""Log-probabilities in streams, and of prompts, against whole results and the model's own forward."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
import torch

import unspool
from tests.tiny_models import tiny_model

PROMPT = [5, 9, 17, 4]

CALLS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sample": {"do_sample": True, "num_return_sequences": 2},
    "beam": {"num_beams": 3, "num_return_sequences": 2},
    "stop": {"eos_token_id": list(range(20, 60))},
}


@pytest.mark.parametrize("name", CALLS)
def test_the_chunks_of_a_stream_have_the_top_logprobs_of_the_result(name: str) -> None:
    stream = unspool.load(tiny_model("llama")).stream(PROMPT, logprobs=3, max_new_tokens=6, seed=4, **CALLS[name])
    streamed: dict[int, list[Any]] = defaultdict(list)
    for chunk in stream:
        streamed[chunk.index] += chunk.top_logprobs or ()
    assert streamed
    for index, positions in streamed.items():
        assert tuple(positions) == stream.generation.completions[index].top_logprobs


def test_a_stream_without_logprobs_has_no_top_logprobs() -> None:
    chunks = list(unspool.load(tiny_model("llama")).stream(PROMPT, max_new_tokens=3))
    assert all(chunk.top_logprobs is None for chunk in chunks)


def test_the_top_logprobs_of_a_prompt_are_those_of_the_models_forward() -> None:
    model = tiny_model("gpt2")
    result = unspool.load(model).generate(PROMPT, echo=True, logprobs=4, max_new_tokens=1, repetition_penalty=5.0)
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0].log_softmax(-1)
    assert result.prompt_logprobs is not None and result.prompt_top_logprobs is not None
    assert result.prompt_logprobs[0] is None and result.prompt_top_logprobs[0] is None
    for position in range(1, len(PROMPT)):
        best = result.prompt_top_logprobs[position]
        assert best is not None
        values, tokens = expected[position - 1].topk(4)
        assert [each.token_id for each in best] == tokens.tolist()
        assert [each.logprob for each in best] == pytest.approx(values.tolist(), abs=1e-5)
        assert result.prompt_logprobs[position] == pytest.approx(
            float(expected[position - 1, PROMPT[position]]), abs=1e-5
        )


def test_a_chosen_token_has_one_logprob_in_both_lists() -> None:
    result = unspool.load(tiny_model("gpt2")).generate(PROMPT, echo=True, logprobs=300, max_new_tokens=4)
    assert result.prompt_logprobs is not None and result.prompt_top_logprobs is not None
    pairs = list(zip(PROMPT[1:], result.prompt_logprobs[1:], result.prompt_top_logprobs[1:], strict=True))
    completion = result.completions[0]
    pairs += zip(completion.token_ids, completion.logprobs, completion.top_logprobs or (), strict=True)
    for token, logprob, best in pairs:
        assert best is not None
        assert logprob in [each.logprob for each in best if each.token_id == token]

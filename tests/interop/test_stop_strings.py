"""Stop strings against transformers: special and added tokens, prompts, batches, and every kind of tokenizer."""

from __future__ import annotations

import copy
import random
import warnings
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.generation.stopping_criteria import StopStringCriteria

import unspool
from tests.sampling import run_all
from tests.text.tokenizers import byte_fallback, byte_level, word_piece
from tests.tiny_models import tiny_model
from unspool.text.detokenize import REPLACEMENT, Detokenizer
from unspool.text.stops import StopStrings

KINDS = {"byte level": byte_level, "byte fallback": byte_fallback, "word piece": word_piece}
CASES = 1000 if run_all() else 60


@cache
def with_added_tokens(kind: str) -> Any:
    """Return a tokenizer with two added tokens more: a special one and an ordinary one."""
    tokenizer = copy.deepcopy(KINDS[kind]())
    tokenizer.add_tokens(["<|im_end|>"], special_tokens=True)
    tokenizer.add_tokens(["<call>"])
    return tokenizer


@cache
def token_groups(kind: str) -> tuple[list[int], list[int]]:
    """Return (the special and the added tokens, the other tokens that hold whole characters)."""
    tokenizer = with_added_tokens(kind)
    marked = sorted({*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder})
    plain = [token for token in range(len(tokenizer)) if token not in marked]
    return marked, [token for token in plain if (text := tokenizer.decode([token])).strip() and REPLACEMENT not in text]


def written(tokenizer: Any, tokens: list[int]) -> str:
    return tokenizer.convert_tokens_to_string(tokenizer.convert_ids_to_tokens(tokens))


@pytest.mark.parametrize("kind", KINDS)
def test_the_criterion_ends_where_that_of_transformers_does(kind: str) -> None:
    tokenizer, (marked, plain) = with_added_tokens(kind), token_groups(kind)
    detokenizer, rng, ended = Detokenizer(tokenizer), random.Random(kind), 0
    beginnings = [token for token in plain if not tokenizer.convert_ids_to_tokens(token).startswith("##")]
    for _ in range(CASES):
        first, *tokens = [rng.choice(marked if rng.random() < 0.3 else plain) for _ in range(12)]
        size = rng.randrange(4)
        prompt, output = [rng.choice(beginnings), first, *tokens[:size]], tokens[size:]
        text = written(tokenizer, prompt + output)
        starts = [rng.randrange(len(text)) for _ in range(rng.randint(1, 3))]
        stops = [text[start : start + rng.randint(1, 12)] for start in starts]
        if any(REPLACEMENT in stop for stop in stops):
            continue
        theirs = StopStringCriteria(tokenizer, stops)
        lengths = range(1, len(output) + 1)
        expected = next((n for n in lengths if theirs(torch.tensor([prompt + output[:n]]), None)), None)

        criterion = StopStrings(stops, detokenizer, in_prompt=True)
        state, found = criterion.start(SimpleNamespace(prompt=tuple(prompt))), None
        for n, token in enumerate(output, 1):
            if criterion.ends(state, token):
                found = n
                break
            state = criterion.advance(state, token)
        assert found == expected, (stops, tokenizer.convert_ids_to_tokens(prompt + output), len(prompt))
        ended += expected is not None
    assert ended > CASES / 2


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "beams": {"num_beams": 3, "num_return_sequences": 2},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["byte level", "byte fallback"])
def test_a_call_writes_the_tokens_of_transformers(kind: str, mode: str) -> None:
    tokenizer, (marked, plain) = with_added_tokens(kind), token_groups(kind)
    model = tiny_model("llama", vocab_size=len(tokenizer), seed=3)
    pad, rng = marked[0], random.Random(mode)
    prompt, other = rng.sample(plain, 5), rng.sample(plain, 3)
    batch = torch.tensor([prompt, [pad] * 2 + other] if mode != "prompt lookup" else [prompt])
    options = {
        "attention_mask": (batch != pad).long(),
        "max_new_tokens": 10,
        "eos_token_id": pad,
        "pad_token_id": pad,
        "suppress_tokens": [pad, *(token for token in range(len(tokenizer)) if token not in (*marked, *plain))],
        "repetition_penalty": 1.7,
        "sequence_bias": {(token,): 2.0 for token in marked[1:]},
        **MODES[mode],
    }
    free = model.generate(batch, **options).tolist()
    assert any(token in marked for token in free[0][5:])
    text = written(tokenizer, free[0][3:])
    end = len(written(tokenizer, free[0][3 : 1 + next(n for n in range(5, 15) if free[0][n] in marked)]))
    for start in (end - 2, end - 1, *rng.sample(range(len(text) - 4), 4)):
        stops = [text[start : start + rng.randint(2, 6)]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = model.generate(batch, **options, stop_strings=stops, tokenizer=tokenizer)
        found = unspool.generate(model, batch, **options, stop_strings=stops, tokenizer=tokenizer)
        assert found.tolist() == expected.tolist(), stops
        assert start >= end or expected.shape[1] < len(free[0]) or len(free) > 1


def test_a_stop_string_can_begin_in_the_prompt() -> None:
    tokenizer = byte_level()
    model = tiny_model("llama", vocab_size=len(tokenizer), seed=3)
    prompt = tokenizer("Once a", return_tensors="pt").input_ids
    (token,) = model.generate(prompt, max_new_tokens=1, suppress_tokens=[0, 1])[0, prompt.shape[1] :].tolist()
    stop = "a" + tokenizer.decode([token])
    options = {"max_new_tokens": 5, "suppress_tokens": [0, 1], "stop_strings": stop, "tokenizer": tokenizer}
    found = unspool.generate(model, prompt, **options)
    assert found[0, prompt.shape[1] :].tolist() == [token]


@pytest.mark.parametrize("name", ["stop_sequence", "stop_strings"])
def test_a_pipeline_ends_at_the_text_of_a_special_token(name: str) -> None:
    tokenizer = byte_level()
    turn, end = tokenizer.convert_tokens_to_ids(["<|turn|>", "<|end|>"])
    model = tiny_model("llama", vocab_size=len(tokenizer), seed=3)
    options = {"do_sample": False, "max_new_tokens": 12, "sequence_bias": {(turn,): 2.5}, "suppress_tokens": [end]}
    pipe = unspool.pipeline("text-generation", model=model, tokenizer=tokenizer, repetition_penalty=1.7, **options)
    (free,) = pipe("Once", return_tensors=True)
    (found,) = pipe("Once", return_tensors=True, **{name: "<|turn|>"})
    ids = free["generated_token_ids"]
    assert found["generated_token_ids"] == ids[: ids.index(turn) + 1]
    assert ids.index(turn) < len(ids) - 1

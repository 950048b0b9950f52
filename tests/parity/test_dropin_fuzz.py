"""Random valid calls on tiny models of six families: the drop-in returns what `model.generate` returns, scores too.

What transformers does otherwise on purpose or by mistake is left out of the draw; docs/transformers.md lists it.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from transformers import PreTrainedModel

import unspool
from tests.sampling import sampled
from tests.tiny_models import VOCAB_SIZE, tiny_model

FAMILIES = ("gpt2", "llama", "gpt_neox", "gemma2", "qwen2", "opt")
KINDS = ("greedy", "beam", "beam", "best token drawn", "lookup", "guided")
# transformers' beams fill up with the ending token where the padding token is 0.
PAD = 1
FREE = 20
CLOSE = {"rtol": 1e-3, "atol": 1e-3}
NUMBERS = range(500)


class Call(NamedTuple):
    """One call: what model.generate is given, drawn from a number."""

    family: str
    kind: str
    prompts: list[list[int]]
    options: dict[str, Any]
    objects: tuple[str, ...]
    as_config: bool
    scored: bool


def draw_call(number: int) -> Call:
    """Return the call of this number, the same one in every run."""
    rng = random.Random(f"drop-in {number}")
    kind = rng.choice(KINDS)
    rows = 1 if kind == "lookup" else rng.choice((1, 1, 2, 3))
    lengths = [rng.randint(1, 9) for _ in range(rows)]
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]
    if kind == "lookup":
        prompts = [prompts[0] * 3]
    width, is_padded = max(map(len, prompts)), len(set(lengths)) > 1
    options = draw_kind(rng, kind)
    several = draw_options(rng, width, is_padded)
    for name in rng.sample(sorted(several), k=rng.randint(0, 5)):
        options |= several[name]
    if kind in ("beam", "best token drawn"):
        options |= {name: options[name][0] for name in ("forced_eos_token_id",) if isinstance(options.get(name), list)}
    options |= draw_length(rng, options, width)
    objects = tuple(rng.sample(sorted(OBJECTS), k=rng.choice((0, 0, 1, 2)))) if kind != "lookup" else ()
    if "prefix" in objects and options.get("do_sample"):
        options["num_return_sequences"] = 1  # transformers counts outputs as prompts
    return Call(rng.choice(FAMILIES), kind, prompts, options, objects, rng.random() < 0.3, rng.random() < 0.5)


def draw_kind(rng: random.Random, kind: str) -> dict[str, Any]:
    if kind == "beam":
        beams = rng.randint(2, 5)
        return {
            "num_beams": beams,
            "num_return_sequences": rng.randint(1, beams),
            "early_stopping": rng.choice((True, False, "never")),
            "length_penalty": rng.choice((-1.0, 0.0, 0.5, 1.0, 2.0)),
        }
    if kind == "best token drawn":
        cut: dict[str, Any] = rng.choice(({"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-4, "top_k": 2}))
        return {"do_sample": True, "num_return_sequences": rng.choice((1, 2, 3)), **cut}
    if kind == "lookup":
        return {"prompt_lookup_num_tokens": rng.randint(1, 6), "max_matching_ngram_size": rng.randint(1, 3)}
    if kind == "guided":
        return {"guidance_scale": rng.choice((0.5, 1.5, 3.0))}
    return {}


def draw_length(rng: random.Random, options: dict[str, Any], width: int) -> dict[str, Any]:
    if rng.random() < 0.5:
        return {"max_new_tokens": rng.randint(12, 25)}
    if rng.random() < 0.6:
        return {"max_length": rng.randint(width + 12, width + 25)}
    return {}


def draw_options(rng: random.Random, width: int, is_padded: bool) -> dict[str, dict[str, Any]]:
    """Return options by their first name; one token in eight may end an output."""
    tokens = range(3, VOCAB_SIZE)
    ends = rng.sample(range(3, FREE), 2) + rng.sample(range(FREE, VOCAB_SIZE), 10)
    words = [tuple(rng.choice(tokens) for _ in range(rng.choice((1, 1, 2)))) for _ in range(8)]
    found: dict[str, Any] = {
        "eos_token_id": rng.choice((ends, ends[:1], ends)),
        "min_new_tokens": rng.randint(0, 9),
        "min_length": width + rng.randint(0, 9),
        "exponential_decay_length_penalty": (rng.randint(0, 6), rng.uniform(1.01, 1.6)),
        "forced_eos_token_id": rng.choice((ends[0], ends[:2])),
        "repetition_penalty": rng.choice((0.7, 1.2, 1.8)),
        "bad_words_ids": [list(word) for word in words],
        "sequence_bias": [[list(word), rng.uniform(-9.0, 9.0)] for word in dict.fromkeys(words)],
        "suppress_tokens": rng.sample(range(FREE, VOCAB_SIZE), 20),
        "begin_suppress_tokens": rng.sample(range(FREE, VOCAB_SIZE), 20),
        "forced_bos_token_id": rng.randrange(3, FREE),
        "remove_invalid_values": True,
        "renormalize_logits": True,
    }
    if not is_padded:
        found |= {
            "no_repeat_ngram_size": rng.randint(1, 4),
            "encoder_no_repeat_ngram_size": rng.randint(1, 3),
            "encoder_repetition_penalty": rng.choice((0.6, 1.5)),
        }
    return {name: {name: value} for name, value in found.items()}


# --- objects of the caller's, which look at the whole batch ----------------------------------------------------------


class ForbidWhatRowZeroWrote(transformers.LogitsProcessor):
    """No row may write what stands last in the first row."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores[:, input_ids[0, -1]] = -torch.inf  # in place, as many do
        return scores


class PreferHigher(transformers.LogitsProcessor):
    """Raises a token by the row's number and the width."""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        bias = torch.zeros_like(scores)
        columns = (torch.arange(len(scores)) * 7 + input_ids.shape[1]) % scores.shape[1]
        return scores + bias.scatter(1, columns[:, None], 2.0)


class StopAllAtOne(transformers.StoppingCriteria):
    """Ends everything as soon as any row writes one of some tokens."""

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), bool((input_ids[:, -1] % 31 == 5).any()))


class StopRow(transformers.StoppingCriteria):
    """Ends a row whose last two tokens add up to a multiple of eleven."""

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        return input_ids[:, -2:].sum(1) % 11 == 0


def allowed_tokens(batch_id: int, input_ids: torch.Tensor) -> list[int]:
    """Allow two tokens in three, others in each prompt and after each token."""
    shift = batch_id + int(input_ids[-1])
    return [token for token in range(VOCAB_SIZE) if (token + shift) % 3]


OBJECTS: dict[str, Callable[[], tuple[str, Any]]] = {
    "row zero": lambda: ("logits_processor", ForbidWhatRowZeroWrote()),
    "higher": lambda: ("logits_processor", PreferHigher()),
    "penalty": lambda: ("logits_processor", transformers.RepetitionPenaltyLogitsProcessor(1.5)),
    "all at once": lambda: ("stopping_criteria", StopAllAtOne()),
    "one row": lambda: ("stopping_criteria", StopRow()),
    "prefix": lambda: ("prefix_allowed_tokens_fn", allowed_tokens),
}


# --- the comparison ------------------------------------------------------------------------------------------------


@cache
def model_of(family: str) -> PreTrainedModel:
    return tiny_model(family, seed=5)


def arguments(call: Call) -> dict[str, Any]:
    """Return the keyword arguments, fresh objects for each of the two calls."""
    width = max(map(len, call.prompts))
    rows = [[PAD] * (width - len(prompt)) + prompt for prompt in call.prompts]
    found: dict[str, Any] = {"input_ids": torch.tensor(rows)}
    found["attention_mask"] = (found["input_ids"] != PAD).long()
    for name in call.objects:
        argument, value = OBJECTS[name]()
        found[argument] = value if argument == "prefix_allowed_tokens_fn" else [*found.get(argument, []), value]
    options: dict[str, Any] = {"pad_token_id": PAD, **call.options, "return_dict_in_generate": True}
    options |= {"output_scores": True, "output_logits": call.scored and call.kind != "guided"}
    if call.as_config:
        return found | {"generation_config": transformers.GenerationConfig(**options)}
    return found | options


def quietly(generate: Callable[..., Any], *args: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return generate(*args, **options)


def is_near_tie(call: Call, found: Any, expected: Any) -> bool:
    """Return whether the first tokens that differ were as good as equal to transformers itself."""
    if call.kind == "beam":
        return torch.allclose(found.sequences_scores, expected.sequences_scores, rtol=1e-4, atol=1e-4)
    width = max(map(len, call.prompts))
    for row, (ours, theirs) in enumerate(zip(found.sequences.tolist(), expected.sequences.tolist(), strict=True)):
        if len(ours) != len(theirs):
            return False
        for step, (token, other) in enumerate(zip(ours[width:], theirs[width:], strict=True)):
            if token != other:
                best = expected.scores[step][row].topk(2).values
                if best[0] - best[1] > 1e-4:
                    return False
                break
    return True


@pytest.mark.parametrize("number", sampled(NUMBERS, 60))
def test_a_random_call_returns_what_transformers_returns(number: int) -> None:
    call = draw_call(number)
    model = model_of(call.family)
    expected = quietly(model.generate, **arguments(call))
    found = unspool.generate(model, **arguments(call))
    if not found.sequences.equal(expected.sequences):
        assert is_near_tie(call, found, expected), call
        return
    if call.kind == "beam":
        torch.testing.assert_close(found.sequences_scores, expected.sequences_scores, **CLOSE)
        assert found.beam_indices.equal(expected.beam_indices)
    for one, other in zip(transitions(model, found), transitions(model, expected), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)
    if call.scored and call.kind != "guided":
        torch.testing.assert_close(found.logits[0], expected.logits[0], **CLOSE)


def transitions(model: Any, output: Any) -> list[torch.Tensor]:
    scores = model.compute_transition_scores(output.sequences, output.scores, getattr(output, "beam_indices", None))
    ended = output.sequences[:, -scores.shape[1] :] == PAD
    return list(scores.masked_fill(ended, 0.0))


def test_the_drill_covers_what_it_is_for() -> None:
    """Every option, object, family and kind occurs in the sampled part too, and beams over padded rows."""
    calls = [draw_call(number) for number in sampled(NUMBERS, 60)]
    options = set().union(*(call.options for call in calls))
    assert len(options) >= 22 and {call.kind for call in calls} == set(KINDS)
    assert {name for call in calls for name in call.objects} == set(OBJECTS)
    assert {call.family for call in calls} == set(FAMILIES)
    assert any(call.kind == "beam" and call.objects and len(set(map(len, call.prompts))) > 1 for call in calls)

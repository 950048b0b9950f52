"""Random requests through our processors and through the classes of the installed transformers."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch

from tests.processors.support import applied, context, named, state_of
from tests.sampling import run_all

logits_process = pytest.importorskip("transformers.generation.logits_process")

VOCAB, PROMPT_LENGTH, EOS = 150, 6, (2, 7)
ROUNDS = 200 if run_all() else 25


class Theirs(NamedTuple):
    """Draws a setting, and builds transformers' processor of it, given the ids so far and `min_tokens_to_keep`."""

    draw: Callable[[random.Random], Any]
    build: Callable[[Any, torch.Tensor, int], Any]
    keeps: bool = False


def sequences(rng: random.Random, longest: int = 3) -> list[list[int]]:
    return [[rng.randrange(8) for _ in range(rng.randint(1, longest))] for _ in range(rng.randint(1, 6))]


def make(class_name: str, **fixed: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: getattr(logits_process, class_name)(*args, **fixed, **kwargs)


EOS_LIST = list(EOS)
THEIRS: dict[str, Theirs] = {
    "sequence_bias": Theirs(
        lambda rng: {tuple(s): rng.uniform(-4, 4) for s in sequences(rng)},
        lambda value, ids, keep: make("SequenceBiasLogitsProcessor")(value),
    ),
    "encoder_repetition_penalty": Theirs(
        lambda rng: rng.uniform(0.3, 3),
        lambda value, ids, keep: make("EncoderRepetitionPenaltyLogitsProcessor")(value, ids[:, :PROMPT_LENGTH]),
    ),
    "repetition_penalty": Theirs(
        lambda rng: rng.uniform(0.3, 3), lambda value, ids, keep: make("RepetitionPenaltyLogitsProcessor")(value)
    ),
    "no_repeat_ngram_size": Theirs(
        lambda rng: rng.randint(1, 5), lambda value, ids, keep: make("NoRepeatNGramLogitsProcessor")(value)
    ),
    "encoder_no_repeat_ngram_size": Theirs(
        lambda rng: rng.randint(1, 5),
        lambda value, ids, keep: make("EncoderNoRepeatNGramLogitsProcessor")(value, ids[:, :PROMPT_LENGTH]),
    ),
    "bad_words_ids": Theirs(
        lambda rng: [[1], *sequences(rng)],
        lambda value, ids, keep: make("NoBadWordsLogitsProcessor")(value, EOS_LIST),
    ),
    "min_length": Theirs(
        lambda rng: rng.randint(PROMPT_LENGTH + 1, 20),
        lambda value, ids, keep: make("MinLengthLogitsProcessor")(value, EOS_LIST),
    ),
    "min_new_tokens": Theirs(
        lambda rng: rng.randint(1, 14),
        lambda value, ids, keep: make("MinNewTokensLengthLogitsProcessor")(PROMPT_LENGTH, value, EOS_LIST),
    ),
    "exponential_decay_length_penalty": Theirs(
        lambda rng: (rng.randint(0, 8), rng.uniform(0.9, 1.5)),
        lambda value, ids, keep: make("ExponentialDecayLengthPenalty")(value, EOS_LIST, PROMPT_LENGTH),
    ),
    "suppress_tokens": Theirs(
        lambda rng: [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))],
        lambda value, ids, keep: make("SuppressTokensLogitsProcessor")(value),
    ),
    "begin_suppress_tokens": Theirs(
        lambda rng: [rng.randrange(VOCAB) for _ in range(rng.randint(1, 9))],
        lambda value, ids, keep: make("SuppressTokensAtBeginLogitsProcessor")(value, PROMPT_LENGTH),
    ),
    "forced_eos_token_id": Theirs(
        lambda rng: rng.choice([3, [3, 5]]),
        lambda value, ids, keep: make("ForcedEOSTokenLogitsProcessor")(PROMPT_LENGTH + 9, value),
    ),
    "temperature": Theirs(
        lambda rng: rng.uniform(0.05, 3), lambda value, ids, keep: make("TemperatureLogitsWarper")(value)
    ),
    "top_h": Theirs(lambda rng: rng.uniform(0.05, 1), lambda value, ids, keep: make("TopHLogitsWarper")(value)),
    "top_k": Theirs(
        lambda rng: rng.randint(1, VOCAB + 20),
        lambda value, ids, keep: make("TopKLogitsWarper", min_tokens_to_keep=keep)(value),
        keeps=True,
    ),
    "top_p": Theirs(
        lambda rng: rng.uniform(0.02, 0.999),
        lambda value, ids, keep: make("TopPLogitsWarper", min_tokens_to_keep=keep)(value),
        keeps=True,
    ),
    "min_p": Theirs(
        lambda rng: rng.uniform(0.001, 0.9),
        lambda value, ids, keep: make("MinPLogitsWarper", min_tokens_to_keep=keep)(value),
        keeps=True,
    ),
    "typical_p": Theirs(
        lambda rng: rng.uniform(0.02, 0.999),
        lambda value, ids, keep: make("TypicalLogitsWarper", min_tokens_to_keep=keep)(value),
        keeps=True,
    ),
    "epsilon_cutoff": Theirs(
        lambda rng: 10 ** rng.uniform(-4, -0.1),
        lambda value, ids, keep: make("EpsilonLogitsWarper", min_tokens_to_keep=keep)(value),
        keeps=True,
    ),
    "eta_cutoff": Theirs(
        lambda rng: 10 ** rng.uniform(-4, -0.1),
        lambda value, ids, keep: make("EtaLogitsWarper", min_tokens_to_keep=keep)(value),
        keeps=True,
    ),
    "remove_invalid_values": Theirs(lambda rng: True, lambda value, ids, keep: make("InfNanRemoveLogitsProcessor")()),
    "renormalize_logits": Theirs(lambda rng: True, lambda value, ids, keep: make("LogitNormalization")()),
}


@pytest.mark.parametrize("name", THEIRS)
def test_ours_batched_equals_theirs_row_by_row(name: str):
    theirs, changed = THEIRS[name], 0
    for seed in range(ROUNDS):
        rng, torch_rng = random.Random(seed), torch.Generator().manual_seed(seed)
        rows = 4
        scores = torch.randn(rows, VOCAB, generator=torch_rng) * rng.choice([0.5, 2.0, 6.0])
        if seed % 2:
            scores[torch.rand(rows, VOCAB, generator=torch_rng) < 0.3] = float("-inf")
        if seed % 3 == 0:
            scores = scores.log_softmax(-1)
        states, expected = [], []
        for row in range(rows):
            ids = [rng.randrange(8) for _ in range(PROMPT_LENGTH + (seed + row) % 12)]
            keep = rng.randint(1, 4) if theirs.keeps else 1
            setting = theirs.draw(rng)
            request = context(
                ids[:PROMPT_LENGTH],
                vocab_size=VOCAB,
                eos=EOS,
                max_new_tokens=9,
                min_tokens_to_keep=keep,
                **named(name, setting),
            )
            states.append(state_of(name, request, ids[PROMPT_LENGTH:]))
            tensor = torch.tensor([ids])
            expected.append(theirs.build(setting, tensor, keep)(tensor, scores[row : row + 1].clone()))
        result = applied(name, states, scores)
        changed += not torch.equal(result, scores)
        torch.testing.assert_close(result, torch.cat(expected), msg=lambda text, seed=seed: f"seed {seed}: {text}")
    assert changed > 0, "the examples must show the processor at work"


def test_forced_bos_applies_to_a_prompt_of_one_token_alone():
    scores = torch.randn(1, VOCAB, generator=torch.Generator().manual_seed(0))
    state = state_of("forced_bos_token_id", context((4,), vocab_size=VOCAB, forced_bos_token_id=9))
    expected = make("ForcedBOSTokenLogitsProcessor")(9)(torch.tensor([[4]]), scores)
    assert torch.equal(applied("forced_bos_token_id", [state], scores), expected)

"""Whisper's timestamp rules, against transformers' own processor on random outputs."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import GenerationConfig, WhisperTimeStampLogitsProcessor

from unspool.processors.timestamps import Timestamps
from unspool.protocols import RowKey

VOCAB_SIZE, NO_TIMESTAMPS, EOS = 40, 25, 20
KEY = RowKey(0, 0, 0, 0)


CONTEXT: Any = SimpleNamespace(eos_token_ids=(EOS,), info=SimpleNamespace(bos_token_id=5))


@pytest.mark.parametrize("by_sum", [True, False])
@pytest.mark.parametrize("max_initial", [None, 4])
def test_scores_are_those_of_transformers(max_initial: int | None, by_sum: bool) -> None:
    rng, generator = random.Random(0), torch.Generator().manual_seed(0)
    config = GenerationConfig(eos_token_id=EOS)
    config.no_timestamps_token_id, config.max_initial_timestamp_index = NO_TIMESTAMPS, max_initial
    theirs = WhisperTimeStampLogitsProcessor(config, begin_index=2, _detect_timestamp_from_logprob=by_sum)
    ours = Timestamps(NO_TIMESTAMPS, max_initial, by_sum=by_sum)
    for length in (0, 1, 2, 3, 5, 8):
        rows = [[rng.choice([rng.randrange(20), rng.randint(26, 36)]) for _ in range(length)] for _ in range(40)]
        scores = 3 * torch.randn(len(rows), VOCAB_SIZE, generator=generator)
        states = []
        for row in rows:
            state = ours.start(CONTEXT)
            for token in row:
                state = ours.advance(state, token)
            states.append(ours.fork(state))
        ids = torch.tensor([[7, 8, *row] for row in rows])
        found = ours.apply(states, scores.clone(), [KEY] * len(rows))
        torch.testing.assert_close(found, theirs(ids, scores), rtol=0, atol=0)


def replace_eos(token: int) -> Any:
    return SimpleNamespace(eos_token_ids=(token,), info=CONTEXT.info)


def test_without_an_end_token_the_first_token_counts_as_in_transformers() -> None:
    ours = Timestamps(NO_TIMESTAMPS)
    assert ours.start(SimpleNamespace(eos_token_ids=(), info=CONTEXT.info)).eos == 5


def test_the_worked_example_of_the_docstring() -> None:
    ours = Timestamps(9)
    state = ours.start(replace_eos(8))
    for token in (12, 4, 5, 15):
        state = ours.advance(state, token)
    scores = torch.zeros(1, 20)
    assert ours.apply([state], scores.clone(), [KEY])[0].isfinite().nonzero()[:, 0].tolist() == [15, 16, 17, 18, 19]
    scores[0, 8] = 9.0
    allowed = ours.apply([state], scores.clone(), [KEY])[0].isfinite().nonzero()[:, 0].tolist()
    assert allowed == [8, 15, 16, 17, 18, 19]
    allowed = ours.apply([ours.advance(state, 15)], scores, [KEY])[0].isfinite().nonzero()[:, 0].tolist()
    assert allowed == [0, 1, 2, 3, 4, 5, 6, 7, 8]

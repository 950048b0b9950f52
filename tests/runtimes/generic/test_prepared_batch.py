"""A batch that transformers has prepared: rows of beams, ended rows, failures."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache, GenerationConfig

from tests.tiny_models import CACHE, tiny_model
from unspool.errors import ModelError
from unspool.runtimes.generic.prepared_batch import PreparedBatch, PreparedBatchRuntime
from unspool.types import Feed

PROMPTS = [(11, 12, 13), (21, 22, 23)]
MODEL = tiny_model("llama")


def runtime_of(rows_per_prompt: int = 1, prompts: Any = PROMPTS) -> PreparedBatchRuntime:
    config: Any = GenerationConfig()  # type: ignore[no-untyped-call]
    arguments = {CACHE: DynamicCache(config=MODEL.config), "use_cache": True}
    batch = PreparedBatch(
        input_ids=torch.tensor(prompts).repeat_interleave(rows_per_prompt, dim=0),
        config=config,
        arguments=arguments,
        rows_per_prompt=rows_per_prompt,
    )
    return PreparedBatchRuntime(MODEL, batch, prompts=prompts, pad_token_id=0)


def feed(seq: int, *tokens: int) -> Feed:
    return Feed(seq=seq, tokens=tokens, asked=(len(tokens) - 1,))


def logits_of(*tokens: int) -> torch.Tensor:
    """Return the model's own logits behind these tokens."""
    with torch.no_grad():
        found: torch.Tensor = MODEL(torch.tensor([tokens]), use_cache=False).logits[0, -1]
    return found


def assert_rows(found: torch.Tensor, *expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_beams_change_their_rows_with_their_keys():
    """Both beams of the second step continue the second beam of the first, in the other order of rows."""
    runtime, prompt = runtime_of(2, PROMPTS[:1]), PROMPTS[0]
    assert_rows(runtime.forward([feed(0, *prompt)]).logits, logits_of(*prompt))
    runtime.fork(0, 1)
    runtime.forward([feed(0, 31), feed(1, 32)])
    runtime.release(0)
    runtime.fork(1, 2)
    rows = runtime.forward([feed(2, 41), feed(1, 42)]).logits
    assert_rows(rows, logits_of(*prompt, 32, 41), logits_of(*prompt, 32, 42))
    assert [runtime.row_at(2, 0, written) for written in ((32, 41), (32, 42), (31, 41))] == [0, 1, 0]


def test_equal_prompts_have_rows_of_their_own():
    runtime = runtime_of(1, [PROMPTS[0], PROMPTS[0]])
    runtime.forward([feed(0, *PROMPTS[0]), feed(1, *PROMPTS[0])])
    rows = runtime.forward([feed(0, 5), feed(1, 6)]).logits
    assert_rows(rows, logits_of(*PROMPTS[0], 5), logits_of(*PROMPTS[0], 6))


def test_an_ended_row_reads_its_last_token_and_then_pads():
    runtime = runtime_of()
    runtime.forward([feed(0, *PROMPTS[0]), feed(1, *PROMPTS[1])])
    runtime.ended = lambda: [(0, (2,))]
    runtime.release(0)
    for token in (31, 32):
        runtime.forward([feed(1, token)])
    keys = runtime.cache.layers[0].keys
    with torch.no_grad():
        expected = MODEL(torch.tensor([[*PROMPTS[0], 2, 0], [*PROMPTS[1], 31, 32]]), use_cache=True).past_key_values
    torch.testing.assert_close(keys, expected.layers[0].keys, rtol=1e-4, atol=1e-4)


def test_a_failed_call_fails_all_later_ones(monkeypatch: pytest.MonkeyPatch):
    """The first layers have written into the cache by then."""
    runtime = runtime_of()
    runtime.forward([feed(0, *PROMPTS[0]), feed(1, *PROMPTS[1])])
    with monkeypatch.context() as patch:
        patch.setattr(MODEL, "forward", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            runtime.forward([feed(0, 31), feed(1, 32)])
    with pytest.raises(ZeroDivisionError):
        runtime.forward([feed(0, 31)])


def test_what_one_batch_cannot_do_is_said():
    runtime = runtime_of()
    runtime.forward([feed(0, *PROMPTS[0]), feed(1, *PROMPTS[1])])
    with pytest.raises(ModelError, match="cannot be shortened"):
        runtime.truncate(0, 2)
    runtime.fork(0, 2)
    with pytest.raises(ModelError, match="has 1 rows per prompt"):
        runtime.forward([feed(0, 31), feed(1, 32), feed(2, 33)])

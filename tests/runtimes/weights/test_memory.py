"""What a model says that its cache takes, against what lies in memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.runtimes.test_choose import DYNAMIC, LONGROPE
from tests.tiny_models import tiny_model
from tests.tiny_seq2seq import tiny_seq2seq
from unspool.runtimes.choose import runtime_of
from unspool.runtimes.kv.slot_table import SlotTable
from unspool.runtimes.toy import ToyRuntime


def measured(slots: SlotTable) -> float:
    """Return the bytes that the slots take for each token they have room for."""
    pools = [pool for pools in slots._pools.values() for pool in pools]
    tensors = [tensor for pool in pools for tensor in (*pool.keys, *pool.values)]
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(memory.values()) / slots.num_slot_tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gemma3"])
def test_a_cached_token_takes_what_the_model_says(family: str, dtype: torch.dtype) -> None:
    runtime: Any = runtime_of(tiny_model(family, dtype=dtype), owns_model=True)
    runtime._slots.reserve([(0, 70), (1, 5)])
    assert runtime.info.bytes_per_token == measured(runtime._slots) > 0


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_so_does_a_decoder_s_token(family: str) -> None:
    runtime: Any = runtime_of(tiny_seq2seq(family), owns_model=True)
    runtime._slots.reserve([(0, 70), (1, 5)])
    assert runtime.info.bytes_per_token == measured(runtime._slots) > 0


@pytest.mark.parametrize(("family", "expected"), [("bloom", None), ("mamba", None), ("openai", 0)])
def test_off_the_slots_it_is_not_known_or_nothing(family: str, expected: int | None) -> None:
    assert runtime_of(tiny_model(family), owns_model=True).info.bytes_per_token == expected


def test_a_toy_keeps_none() -> None:
    assert ToyRuntime({0: [0.5, 0.5], 1: [0.25, 0.75]}, 2).info.bytes_per_token == 0


def test_a_stretched_model_takes_what_its_slots_do_where_the_rest_keeps_nothing() -> None:
    runtime: Any = runtime_of(tiny_model("llama", **DYNAMIC), owns_model=True)
    assert runtime.info.bytes_per_token == runtime._short.info.bytes_per_token > 0
    assert runtime_of(tiny_model("phi3", **LONGROPE), owns_model=True).info.bytes_per_token is None

"""Keys and values that several queries share: found, read once, and the same results."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch

from tests.runtimes.kv.test_attention_plan import (
    CPU,
    HEADS,
    NUM_LAYERS,
    TERMS,
    needs_kernels,
    pool_of,
    read_alone,
    states_of,
)
from tests.tiny_models import tiny_model
from unspool.kernels.attention import SlotAttention, SlotQuery, SlotTensors
from unspool.runtimes.decoder.runtime import DecoderRuntime
from unspool.runtimes.kv import attention_plan
from unspool.runtimes.kv import shared_prefix as prefixes
from unspool.runtimes.kv.attention_plan import AttentionPlan
from unspool.runtimes.kv.cache import SlotCache
from unspool.runtimes.kv.segments import Segment
from unspool.runtimes.kv.shared_prefix import SharedPrefix, shared_prefixes
from unspool.types import Feed


class Query(NamedTuple):
    shared: int


def stems_in(*shared: int, size: int = 3 << 14) -> list[SharedPrefix]:
    return shared_prefixes([Query(each) for each in shared], size)


def test_what_is_alike_is_read_together() -> None:
    assert stems_in(0, 100, 100, 100) == [SharedPrefix(0, 4, 100)]
    assert stems_in(0, 200, 100, 230) == [SharedPrefix(0, 2, 200), SharedPrefix(2, 4, 230)], (
        "cut where that spares more"
    )
    assert stems_in(0, 120, 119, 130) == [SharedPrefix(0, 4, 119)]
    assert stems_in(0, 500, 0, 700, 700) == [SharedPrefix(0, 2, 500), SharedPrefix(2, 5, 700)]


def test_what_spares_little_is_read_query_by_query() -> None:
    assert stems_in(0) == [SharedPrefix(0, 1, 0)]
    assert stems_in(0, 0, 5, 0) == [SharedPrefix(0, 4, 0)]
    assert stems_in(0, 20, 20) == [SharedPrefix(0, 3, 0)]
    assert stems_in(0, 40, size=3 << 12) == [SharedPrefix(0, 2, 0)]
    assert stems_in(0, 0, 300, 0, 0, 40, 0, size=3 << 12) == [
        SharedPrefix(0, 1, 0),
        SharedPrefix(1, 3, 300),
        SharedPrefix(3, 7, 0),
    ]


def test_stems_are_consecutive_and_hold_no_more_than_is_shared() -> None:
    rng = random.Random(3)
    for _ in range(300):
        shared = [0, *(rng.choice([0, 31, 32, 40, 90, 500, rng.randrange(2000)]) for _ in range(rng.randrange(40)))]
        found = stems_in(*shared)
        assert [shared_prefix.first for shared_prefix in found] == [
            0,
            *(shared_prefix.stop for shared_prefix in found[:-1]),
        ]
        assert found[-1].stop == len(shared)
        for shared_prefix in found:
            assert shared_prefix.length <= min(shared[shared_prefix.first + 1 : shared_prefix.stop], default=0)
            assert shared_prefix.length == 0 or shared_prefix.num_saved_keys * (3 << 14) >= prefixes.MIN_SAVED_BYTES


class Bundles:
    """Collects the lengths of the shared prefixes that the kernel gets, one list per bundle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.shared: list[list[int]] = []
        shared = self.shared

        class Spied(SlotAttention):
            def __init__(self, bundles: Sequence[Sequence[SlotQuery]], tensors: SlotTensors) -> None:
                shared.extend([query.shared for query in bundle] for bundle in bundles)
                super().__init__(bundles, tensors)

        monkeypatch.setattr(attention_plan, "SlotAttention", Spied)


@pytest.fixture
def bundles(monkeypatch: pytest.MonkeyPatch) -> Bundles:
    """Share whatever can be shared."""
    monkeypatch.setattr(prefixes, "MIN_SAVED_BYTES", 1)
    return Bundles(monkeypatch)


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("groups", [4, 2])
def test_queries_that_share_a_stem_read_what_they_would_alone(
    groups: int, name: str, dtype: torch.dtype, bundles: Bundles
) -> None:
    rng, params = random.Random(groups), TERMS[name]
    torch.manual_seed(0)
    for turn in range(4):
        pools = [pool_of(groups, 128, 12, dtype), pool_of(groups, 256, 5, dtype)]
        length = rng.randrange(32, 90)
        base = pools[0]
        for pool in pools:
            for mine, source in ((pool.keys, base.keys), (pool.values, base.values)):
                for layer in range(NUM_LAYERS):
                    mine[layer][:, :, :length] = source[layer][:1, :, :length]
        lengths = [length if turn == 0 else length + rng.randrange(30) for _ in range(9)]
        places = [(pools[0], slot) for slot in (0, 1, 2, 5, 6, 11)] + [(pools[1], slot) for slot in (0, 1, 3)]
        spans = [
            Segment(pool, slot, start, 1, row, shared=length if row else 0)
            for row, ((pool, slot), start) in enumerate(zip(places, lengths, strict=True))
        ]
        spans[6] = spans[6]._replace(shared=length - 1 if turn == 2 else 0 if turn == 3 else length)
        cache = SlotCache(AttentionPlan(spans, "kernel", CPU), NUM_LAYERS)
        for layer in range(NUM_LAYERS):
            query = states_of(HEADS, 9, dtype)
            key, value = (states_of(groups, 9, dtype) for _ in range(2))
            cache.update(key, value, layer)
            found = cache.attend(query, key, value, params)
            expected = torch.stack(list(read_alone(spans, query[0].transpose(0, 1), layer, params)))
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=0)
    assert max(map(len, bundles.shared)) == 6, "one bundle for all queries of a pool that share"


@needs_kernels
def test_a_model_gives_the_same_with_and_without(bundles: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [3 + (7 * place) % 60 for place in range(50)]
    logits = []
    for spared in (1, 1 << 60):
        monkeypatch.setattr(prefixes, "MIN_SAVED_BYTES", spared)
        runtime = DecoderRuntime(tiny_model("llama"), owns_model=True)
        runtime.forward([Feed(seq=0, tokens=tokens, asked=())])
        for child in range(1, 4):
            runtime.fork(0, child)
        runtime.forward([Feed(seq=9, tokens=[5], asked=())])
        rows = [
            runtime.forward([Feed(seq=seq, tokens=[3 + seq + step], asked=(0,)) for seq in (2, 9, 0, 3, 1)]).logits
            for step in range(4)
        ]
        logits.append(torch.cat(rows))
        assert any(map(any, bundles.shared)) is (spared == 1)
        bundles.shared.clear()
    assert torch.equal(logits[0], logits[1])
    assert not torch.equal(logits[0][0], logits[0][2])


@needs_kernels
def test_what_is_invariant_or_not_finite_is_not_shared(bundles: Bundles) -> None:
    tokens = [3 + (7 * place) % 60 for place in range(50)]
    runtime = DecoderRuntime(tiny_model("llama"), owns_model=True)
    for seq in (0, 1):
        runtime.forward([Feed(seq=seq, tokens=tokens, asked=())])
    runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,), invariant=True) for seq in (0, 1)])
    runtime._slots.live[0].nonfinite = True
    runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in (0, 1)])
    assert not any(map(any, bundles.shared))
    runtime._slots.live[0].nonfinite = False
    runtime.forward([Feed(seq=seq, tokens=[5], asked=(0,)) for seq in (0, 1)])
    assert bundles.shared[-1] == [52, 52]

"""One pass over slots against attention that reads every token's own past, and what a pass copies on the way."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from tests.runtimes.counting import NewTensors
from unspool.kernels.library import kernels, obstacle
from unspool.runtimes.kv import attention
from unspool.runtimes.kv import cache as caches
from unspool.runtimes.kv.attention import AttentionParams
from unspool.runtimes.kv.attention_plan import AttentionPlan
from unspool.runtimes.kv.cache import SlotCache
from unspool.runtimes.kv.pool import LayerLayout, SlotPool
from unspool.runtimes.kv.segments import Segment

CPU = torch.device("cpu")
HEADS, WIDTH, NUM_LAYERS = 4, 8, 3
needs_kernels = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")
PATHS = ["loop", "masked", pytest.param("kernel", marks=needs_kernels)]
TERMS = {
    "all": AttentionParams(None, None, None, None),
    "window": AttentionParams(0.4, 9, None, None),
    "softcap": AttentionParams(None, None, 2.0, None),
    "window and sinks": AttentionParams(None, 9, None, torch.linspace(-1, 1, HEADS)),
}


def pool_of(groups: int, capacity: int, num_slots: int, dtype: torch.dtype = torch.float32) -> SlotPool:
    """Return a pool full of random numbers: what a sequence has left behind is finite, but not zero."""
    pool = SlotPool((LayerLayout(groups, WIDTH, WIDTH, dtype, CPU),) * NUM_LAYERS, capacity, num_slots)
    generator = torch.Generator().manual_seed(capacity)
    for tensor in (*pool.keys, *pool.values):
        tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return pool


def states_of(heads: int, num_rows: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Return random states as a model hands them over: [1, heads, tokens, width], turned round in memory."""
    return torch.randn(1, num_rows, heads, WIDTH, dtype=dtype).transpose(1, 2)


def spans_over(pools: Sequence[SlotPool], rng: random.Random, *, invariant: bool) -> list[Segment]:
    """Return spans of all widths over random slots, often neighbors at one length as beams are, in any order."""
    spans: list[Segment] = []
    for pool in pools:
        slot = rng.randrange(3)
        while slot < pool.num_slots:
            start = rng.randrange(pool.capacity - 40)
            for _ in range(rng.choice([1, 1, 3, 6])):
                width = rng.choice([1, 1, 1, 1, 1, 2, 5, 20, 40])
                if slot < pool.num_slots:
                    spans.append(Segment(pool, slot, start, width, 0, invariant and rng.random() < 0.3))
                slot += 1
            slot += rng.randrange(3)
    if rng.random() < 0.5:
        rng.shuffle(spans)
    row, placed = 0, []
    for span in spans:
        placed.append(span._replace(row=row))
        row += span.width
    return placed


def read_alone(
    spans: Sequence[Segment], queries: torch.Tensor, layer: int, params: AttentionParams
) -> Iterator[torch.Tensor]:
    """Attend each query of each span by itself, in float64. queries: [rows, heads, width]. --> [heads, width] each"""
    for span in spans:
        groups = span.pool.keys[layer].shape[1]
        for offset in range(span.width):
            stop = span.start + offset + 1
            first = 0 if params.window is None else max(0, stop - params.window)
            seen = [each[layer][span.slot, :, first:stop].double() for each in (span.pool.keys, span.pool.values)]
            key, value = (each.repeat_interleave(HEADS // groups, 0) for each in seen)
            scale = WIDTH**-0.5 if params.scaling is None else params.scaling
            scores = torch.einsum("hw,hkw->hk", queries[span.row + offset].double(), key) * scale
            if params.softcap is not None:
                scores = (scores / params.softcap).tanh() * params.softcap
            weights = scores.exp()
            sinks = 0.0 if params.sinks is None else params.sinks.double().exp()[:, None]
            yield torch.einsum("hk,hkw->hw", weights / (weights.sum(1, keepdim=True) + sinks), value)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("groups", [4, 2])
def test_every_token_reads_its_own_past_and_nothing_else_is_touched(path: Any, name: str, groups: int) -> None:
    rng, params = random.Random(len(name) + groups), TERMS[name]
    torch.manual_seed(0)
    for _ in range(3):
        pools = [pool_of(groups, 64, 20), pool_of(groups, 128, 9), pool_of(groups, 64, 5)]
        spans = spans_over(pools, rng, invariant=path != "masked")
        num_tokens = sum(span.width for span in spans)
        before = [[(keys.clone(), values.clone()) for keys, values in _layers(pool)] for pool in pools]
        cache = SlotCache(AttentionPlan(spans, path, CPU), NUM_LAYERS)
        for layer in range(NUM_LAYERS):
            query = states_of(HEADS, num_tokens)
            key, value = (states_of(groups, num_tokens) for _ in range(2))
            cache.update(key, value, layer)
            found = cache.attend(query, key, value, params)
            expected = torch.stack(list(read_alone(spans, query[0].transpose(0, 1), layer, params)))
            torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)
            assert found.shape[0] == num_tokens and found.isfinite().all()
            for span in spans:
                kept = before[pools.index(span.pool)][layer]
                for tensor, states in zip(kept, (key, value), strict=True):
                    tensor[span.slot, :, span.start : span.stop] = states[0, :, span.rows]
        for pool, layers in zip(pools, before, strict=True):
            for now, was in zip(_layers(pool), layers, strict=True):
                assert torch.equal(now[0], was[0]) and torch.equal(now[1], was[1])
        assert cache.finite_rows() == [True] * num_tokens


def _layers(pool: SlotPool) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(zip(pool.keys, pool.values, strict=True))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_half_precision_model_is_answered_in_its_own_type_whatever_is_kept(dtype: torch.dtype, path: Any) -> None:
    pool = pool_of(2, 64, 4, dtype)
    spans = [Segment(pool, 0, 30, 1, 0), Segment(pool, 1, 30, 1, 1), Segment(pool, 3, 7, 3, 2)]
    cache = SlotCache(AttentionPlan(spans, path, CPU), NUM_LAYERS)
    query, key, value = (states_of(heads, 5, torch.bfloat16) for heads in (HEADS, 2, 2))
    cache.update(key, value, 0)
    found = cache.attend(query, key, value, TERMS["all"])
    assert found.dtype == torch.bfloat16
    assert torch.equal(pool.keys[0][:2, :, 30].transpose(0, 1), key[0, :, :2].to(dtype))
    expected = torch.stack(list(read_alone(spans, query[0].transpose(0, 1), 0, TERMS["all"])))
    torch.testing.assert_close(found.double(), expected, atol=2e-2, rtol=0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("prompt", [0, 3])
def test_rows_whose_values_are_not_finite_are_named(path: Any, dtype: torch.dtype, prompt: int) -> None:
    pool, other = pool_of(2, 64, 4), pool_of(2, 128, 1)
    spans = [Segment(pool, slot, 3, 1, slot) for slot in range(4)]
    spans += [Segment(other, 0, 0, prompt, 4)] if prompt else []
    cache, rows = SlotCache(AttentionPlan(spans, path, CPU), NUM_LAYERS), 4 + prompt
    value = states_of(2, rows, dtype)
    value[0, 1, 2, 5] = math.inf
    value[0, 0, 0, 0] = math.nan
    value[0, 1, 1, -1] = torch.finfo(dtype).max
    for layer in range(NUM_LAYERS):
        cache.update(states_of(2, rows, dtype), value, layer)
        cache.attend(states_of(HEADS, rows, dtype), value, value, TERMS["all"])
    assert cache.finite_rows() == [False, True, False, *[True] * (1 + prompt)]


class Calls:
    """Notes what each call of torch's attention is given to read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.keys: list[int] = []
        self.scores: list[int] = []
        original = torch.nn.functional.scaled_dot_product_attention

        def note(query: torch.Tensor, key: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            self.keys.append(key.shape[0] * key.shape[2])
            self.scores.append(query.shape[0] * query.shape[1] * query.shape[2] * key.shape[2])
            return original(query, key, *args, **kwargs)

        monkeypatch.setattr(attention.F, "scaled_dot_product_attention", note)


def run_pass(
    spans: Sequence[Segment], num_layers: int = NUM_LAYERS, params: AttentionParams = TERMS["all"]
) -> NewTensors:
    """Run some layers of a pass. Returns what was made on the way."""
    num_rows = sum(span.width for span in spans)
    groups = spans[0].pool.keys[0].shape[1]
    query, key = states_of(HEADS, num_rows), states_of(groups, num_rows)
    with NewTensors() as made:
        cache = SlotCache(AttentionPlan(spans, "loop", CPU), num_layers)
        for layer in range(num_layers):
            cache.update(key, key, layer)
            cache.attend(query, key, key, params)
    return made


@pytest.mark.parametrize("groups", [4, 2])
def test_a_step_reads_each_key_once_and_makes_nothing_that_grows_with_the_context(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, calls, made = pool_of(groups, 4096, 5), Calls(monkeypatch), {}
    for length in (256, 1024, 4096):
        calls.keys.clear()
        made[length] = run_pass([Segment(pool, slot, length - 1, 1, slot) for slot in range(5)]).sizes
        assert calls.keys == [5 * length] * NUM_LAYERS
    assert made[256] == made[1024] == made[4096]


def test_rows_of_many_lengths_read_few_keys_in_vain(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, pool, calls = random.Random(5), pool_of(2, 1024, 64), Calls(monkeypatch)
    lengths = [rng.choice([30, 200, 1000]) + rng.randrange(20) for _ in range(64)]
    made = run_pass([Segment(pool, slot, length - 1, 1, slot) for slot, length in enumerate(lengths)], num_layers=1)
    assert sum(lengths) <= sum(calls.keys) <= sum(lengths) + 64 * 64
    # Everything made, masks too, is little beside the keys that were read.
    assert sum(made.sizes) < sum(calls.keys) * 2 * WIDTH / 10


def test_beams_of_one_length_are_written_and_read_by_one_call() -> None:
    pool = pool_of(2, 64, 8)
    plan = AttentionPlan([Segment(pool, 2 + row, 17, 1, row) for row in range(5)], "loop", CPU)
    assert (len(plan.copies), len(plan.writes), len(plan.runs), plan.is_all_runs) == (1, 0, 1, True)


def test_many_rows_of_other_lengths_are_written_by_one_call_a_layer() -> None:
    pool = pool_of(2, 64, 32)
    spans = [Segment(pool, slot, 20 + slot % 7, 1, slot) for slot in range(32)]
    plan = AttentionPlan(spans, "loop", CPU)
    assert (len(plan.copies), len(plan.writes), plan.writes[0].rows) == (0, 1, slice(0, 32))
    plan = AttentionPlan([*spans, Segment(pool_of(2, 128, 1), 0, 0, 40, 32)], "loop", CPU)
    assert (len(plan.copies), len(plan.writes)) == (1, 1)


@pytest.mark.parametrize("groups", [4, 2])
def test_a_chunk_of_a_long_prompt_makes_one_mask_for_all_layers(groups: int) -> None:
    pool, start, width = pool_of(groups, 4096, 1), 3840, 256
    large = []
    for num_layers in (1, 3):
        made = run_pass([Segment(pool, 0, start, width, 0)], num_layers)
        large.append([size for size in made.sizes if size >= width * start])
    # Which keys are seen, in bool, and the same as a summand.
    assert large[0] == large[1] == [4096 * width] * 2


def test_the_beginning_of_a_prompt_makes_no_mask() -> None:
    made = run_pass([Segment(pool_of(2, 1024, 1), 0, 0, 1024, 0)])
    assert max(made.sizes) == 1024 * HEADS * WIDTH


def test_a_sliding_window_bounds_what_a_long_chunk_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, window = Calls(monkeypatch), 64
    run_pass([Segment(pool_of(2, 2048, 1), 0, 0, 2048, 0)], 1, AttentionParams(None, window, None, None))
    assert sum(calls.scores) <= 2048 * 2 * window * HEADS


def test_attention_that_is_written_out_holds_a_bounded_part_of_the_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    pool, params = pool_of(2, 256, 1), TERMS["softcap"]
    monkeypatch.setattr(caches, "MAX_MANUAL_SCORES", 1 << 14)
    made = run_pass([Segment(pool, 0, 56, 200, 0)], 1, params)
    assert max(made.sizes) <= 1 << 14 < 200 * 256 * HEADS
    query, key = states_of(HEADS, 200), states_of(2, 200)
    span = Segment(pool, 0, 56, 200, 0)
    cache = SlotCache(AttentionPlan([span], "loop", CPU), 1)
    cache.update(key, key, 0)
    expected = torch.stack(list(read_alone([span], query[0].transpose(0, 1), 0, params)))
    torch.testing.assert_close(cache.attend(query, key, key, params).double(), expected, atol=1e-5, rtol=0)


def test_pieces_of_a_span_cover_it_in_order() -> None:
    span = Segment(pool_of(2, 64, 1), 0, 11, 7, 3)
    assert span.pieces(7) == [span]
    assert [(each.start, each.stop, each.row) for each in span.pieces(3)] == [(11, 14, 3), (14, 17, 6), (17, 18, 9)]

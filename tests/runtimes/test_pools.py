"""Slots in memory: copies, clearing and views reach every layer, and take as few calls as there are shapes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.runtimes.counting import NewTensors
from unspool.runtimes.pools import LayerLayout, SlotPool, zeros

CPU = torch.device("cpu")
ALIKE = (LayerLayout(2, 4, 4, torch.float32, CPU),) * 12
UNLIKE = (
    LayerLayout(2, 4, 3, torch.float32, CPU),
    LayerLayout(1, 8, 4, torch.float32, CPU),
    LayerLayout(2, 4, 3, torch.bfloat16, CPU),
    LayerLayout(2, 4, 3, torch.float32, CPU),
)


def filled(layout: tuple[LayerLayout, ...], capacity: int, num_slots: int, first: int = 0) -> SlotPool:
    pool = SlotPool(layout, capacity, num_slots)
    for number, tensor in enumerate((*pool.keys, *pool.values)):
        tensor.copy_(torch.arange(tensor.numel()).view(tensor.shape) % 31 + first + number)
    return pool


def held(pool: SlotPool) -> list[torch.Tensor]:
    return [tensor.clone() for tensor in (*pool.keys, *pool.values)]


@pytest.mark.parametrize("layout", [ALIKE, UNLIKE])
def test_every_layer_has_its_shape_and_starts_at_zero(layout: tuple[LayerLayout, ...]) -> None:
    pool = SlotPool(layout, 16, 3)
    assert len(pool.keys) == len(pool.values) == len(layout)
    for layer, keys, values in zip(layout, pool.keys, pool.values, strict=True):
        assert keys.shape == (3, layer.num_heads, 16, layer.key_width) and keys.dtype == layer.dtype
        assert values.shape == (3, layer.num_heads, 16, layer.value_width) and values.dtype == layer.dtype
        assert not keys.any() and not values.any()
    memory = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in pool.keys}
    memory |= {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in pool.values}
    assert sum(memory.values()) == pool.num_tokens * sum(layer.bytes_per_token for layer in layout)


@pytest.mark.parametrize("layout", [ALIKE, UNLIKE])
def test_a_copy_moves_the_named_positions_in_every_layer_and_nothing_else(layout: tuple[LayerLayout, ...]) -> None:
    pool, other = filled(layout, 16, 3), filled(layout, 32, 2, first=50)
    before = held(pool)
    pool.copy(1, other, 0, 5, 12)
    for now, was, theirs in zip(held(pool), before, held(other), strict=True):
        was[1, :, 5:12] = theirs[0, :, 5:12]
        assert torch.equal(now, was)
    pool.copy(2, pool, 1, 0, 16)
    assert all(torch.equal(tensor[2], tensor[1]) for tensor in held(pool))
    before = held(pool)
    pool.copy(0, other, 1, 7, 7)
    assert all(map(torch.equal, held(pool), before))


@pytest.mark.parametrize("layout", [ALIKE, UNLIKE])
def test_clearing_reaches_the_named_positions_of_one_slot_in_every_layer(layout: tuple[LayerLayout, ...]) -> None:
    pool = filled(layout, 16, 3, first=1)
    before = held(pool)
    pool.zero(1, 4, 9)
    for now, was in zip(held(pool), before, strict=True):
        was[1, :, 4:9] = 0
        assert torch.equal(now, was)


@pytest.mark.parametrize("layout", [ALIKE, UNLIKE])
def test_views_are_each_layer_s_own_memory(layout: tuple[LayerLayout, ...]) -> None:
    pool = filled(layout, 16, 3)
    states = pool.views(slice(1, 3), slice(2, 6))
    for whole, part in zip((*pool.keys, *pool.values), (*states.keys, *states.values), strict=True):
        assert torch.equal(part, whole[1:3, :, 2:6])
        assert part.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        part.fill_(7)
        assert (whole[1:3, :, 2:6] == 7).all()


@pytest.mark.parametrize(("layout", "num_shapes"), [(ALIKE, 1), (UNLIKE, 6)])
def test_a_slot_is_copied_and_cleared_by_a_call_for_each_shape(
    layout: tuple[LayerLayout, ...], num_shapes: int
) -> None:
    pool = filled(layout, 16, 3)
    with NewTensors() as made:
        pool.copy(0, pool, 1, 3, 9)
    assert made.names.count("copy_") == num_shapes and not made.sizes
    with NewTensors() as made:
        pool.zero(0, 3, 9)
    assert made.names.count("fill_") == num_shapes


def test_a_pool_made_in_inference_mode_can_be_written_to_outside_of_it() -> None:
    with torch.inference_mode():
        pool = SlotPool(ALIKE, 16, 3)
    pool.zero(0, 0, 16)
    pool.keys[0][0] = 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_are_aligned_and_can_be_written_to(dtype: torch.dtype) -> None:
    with torch.inference_mode(False):
        made = [zeros((3, 5, 7), dtype, CPU) for _ in range(5)]
    for tensor in made:
        assert tensor.data_ptr() % 64 == 0 and tensor.shape == (3, 5, 7) and tensor.dtype == dtype
        assert torch.equal(tensor, torch.zeros(3, 5, 7, dtype=dtype)) and not tensor.is_inference()
        tensor += 1
        assert bool((tensor == 1).all())


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="the system does not say what is in memory")
def test_room_takes_no_memory_before_it_is_written_to() -> None:
    layout = (LayerLayout(8, 64, 64, torch.float32, CPU),) * 4
    before = resident()
    pool = SlotPool(layout, 1024, 8)
    size = 1024 * 8 * pool.bytes_per_token * 4
    assert size == 128 << 20
    assert resident() - before < size / 8
    for tensor in (*pool.keys, *pool.values):
        tensor[:2] = 1
    assert size / 8 < resident() - before < 5 * size / 8, "huge pages reach beyond the slots that were written to"


def resident() -> int:
    """Return the bytes of main memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

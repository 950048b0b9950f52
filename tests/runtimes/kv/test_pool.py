"""Slots in memory: copies, clearing and views reach every layer, and take as few calls as there are shapes."""

from __future__ import annotations

import pytest
import torch

from tests.runtimes.counting import NewTensors
from unspool.runtimes.kv.pool import LayerLayout, SlotPool

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

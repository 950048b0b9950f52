"""Which sequence has which slot: growth, reuse, forks that copy little, limits."""

from __future__ import annotations

import random

import pytest
import torch

from unspool.errors import CapacityError
from unspool.runtimes.pools import LayerLayout, SlotPool, size_class
from unspool.runtimes.slots import Slot, SlotTable, common_prefix

LAYOUT = (LayerLayout(2, 4, 3, torch.float32, torch.device("cpu")),) * 2


def number_of(token: int, position: int) -> float:
    return token * 1000.0 + position


def write(table: SlotTable, seq: int, tokens: list[int], *, exact: bool = False) -> Slot:
    """Stand in for a pass: what is cached of a token is a number made of it and its position."""
    (slot,) = table.reserve([(seq, len(tokens))])
    for offset, token in enumerate(tokens):
        for tensor in (*slot.pool.keys, *slot.pool.values):
            tensor[slot.index, :, slot.length + offset] = number_of(token, slot.length + offset)
    table.advance(seq, tokens, exact=exact, poisoned=False)
    return slot


def assert_cached(table: SlotTable, seq: int, tokens: list[int]) -> None:
    slot = table.live[seq]
    assert slot.tokens == tokens
    expected = torch.tensor([number_of(token, position) for position, token in enumerate(tokens)])
    for tensor in (*slot.pool.keys, *slot.pool.values):
        assert torch.equal(tensor[slot.index, 0, : len(tokens), 0], expected)


@pytest.mark.parametrize(("tokens", "expected"), [(0, 64), (1, 64), (64, 64), (65, 128), (128, 128), (1025, 2048)])
def test_size_classes_double(tokens: int, expected: int) -> None:
    assert size_class(tokens) == expected


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 9, 3], 1), ([5], [6], 0), ([1] * 9, [1] * 8 + [2], 8)],
)
def test_common_prefix(first: list[int], second: list[int], expected: int) -> None:
    assert common_prefix(first, second) == common_prefix(second, first) == expected


def test_common_prefix_is_what_a_plain_loop_finds() -> None:
    rng = random.Random(0)
    for _ in range(300):
        first = [rng.randrange(2) for _ in range(rng.randrange(12))]
        second = first[: rng.randrange(13)] + [rng.randrange(2) for _ in range(rng.randrange(4))]
        plain = next((i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), None)
        assert common_prefix(first, second) == (min(len(first), len(second)) if plain is None else plain)


def test_a_sequence_that_outgrows_its_slot_moves_with_all_it_holds() -> None:
    table, tokens = SlotTable(LAYOUT), list(range(70))
    assert write(table, 0, tokens[:60]).pool.capacity == 64
    assert write(table, 0, tokens[60:]).pool.capacity == 128
    assert_cached(table, 0, tokens)
    table.check()


def test_a_fork_into_the_slot_of_a_dropped_sibling_copies_only_what_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    table, prompt = SlotTable(LAYOUT), list(range(40))
    write(table, 0, prompt)
    table.fork(0, 1)
    table.fork(0, 2)
    write(table, 0, [100, 101])
    dropped = write(table, 1, [100, 102, 103])
    write(table, 2, [104])
    table.release(1)
    copied: list[tuple[int, int]] = []
    copy = SlotPool.copy

    def count(self: SlotPool, index: int, source: SlotPool, source_index: int, start: int, stop: int) -> None:
        copied.append((start, stop))
        copy(self, index, source, source_index, start, stop)

    monkeypatch.setattr(SlotPool, "copy", count)
    table.fork(0, 3)
    assert table.live[3] is dropped and copied == [(41, 42)]
    assert_cached(table, 3, [*prompt, 100, 101])
    table.check()


def test_what_was_computed_in_company_is_not_reused_for_an_exact_sequence() -> None:
    table, tokens = SlotTable(LAYOUT), [1, 2, 3, 4]
    write(table, 0, tokens[:2], exact=True)
    write(table, 0, tokens[2:])
    write(table, 1, tokens, exact=True)
    in_company = table.live[0]
    in_company.pool.keys[0][in_company.index] = -1.0
    table.release(0)
    table.fork(1, 2)
    assert table.live[2] is in_company and table.live[2].exact == 4
    # [0, 2) was exact and stays; [2, 4) came from the parent.
    assert in_company.pool.keys[0][in_company.index, 0, :4, 0].tolist() == [-1.0, -1.0, 3002.0, 4003.0]


def test_parent_and_child_go_separate_ways() -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, [1, 2, 3])
    table.fork(0, 1)
    write(table, 0, [4])
    write(table, 1, [5, 6])
    assert table.truncate(0, 2) == 2
    write(table, 0, [7])
    assert_cached(table, 0, [1, 2, 7])
    assert_cached(table, 1, [1, 2, 3, 5, 6])


def test_freed_slots_are_used_again_before_new_ones_are_made() -> None:
    table = SlotTable(LAYOUT)
    for seq in range(100):
        write(table, seq, [seq] * 30)
        table.release(seq)
    assert table.num_slot_tokens == 512 and table.num_live_tokens == 0
    table.release(12345)


def test_pools_double_as_sequences_come() -> None:
    table = SlotTable(LAYOUT)
    sizes = []
    for seq in range(17):
        write(table, seq, [seq])
        sizes.append(table.num_slot_tokens // 64)
    assert sizes == [8] * 8 + [16] * 8 + [32]


def test_under_a_limit_idle_pools_make_room() -> None:
    table = SlotTable(LAYOUT, max_tokens=600)
    for seq in range(8):
        write(table, seq, [seq] * 60)
    for seq in range(8):
        table.release(seq)
    write(table, 9, [9] * 600)
    assert table.num_slot_tokens <= 1200
    table.check()


def test_a_reservation_that_fails_opens_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, [1])

    def fail(self: SlotPool, *_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(SlotPool, "__init__", fail)
    with pytest.raises(MemoryError):
        table.reserve([(1, 5), (0, 3), (2, 500)])
    assert list(table.live) == [0]
    table.check()


def test_a_long_random_life_keeps_every_sequence_apart() -> None:
    rng, table = random.Random(1), SlotTable(LAYOUT, max_tokens=2000, max_sequences=12)
    held: dict[int, list[int]] = {}
    for step in range(600):
        kind = rng.choice(["grow", "grow", "grow", "fork", "truncate", "release"])
        seq = rng.choice(list(held)) if held and rng.random() < 0.8 else step
        try:
            if kind == "grow":
                tokens = [rng.randrange(3) for _ in range(rng.choice([1, 1, 2, 30, 100]))]
                write(table, seq, tokens)
                held[seq] = held.get(seq, []) + tokens
            elif kind == "fork" and seq in held:
                table.fork(seq, step + 10_000)
                held[step + 10_000] = list(held[seq])
            elif kind == "truncate" and seq in held:
                keep = rng.randrange(len(held[seq]) + 2)
                held[seq] = held[seq][:keep]
                assert table.truncate(seq, keep) == len(held[seq])
            elif kind == "release":
                table.release(seq)
                held.pop(seq, None)
        except CapacityError:
            pass
        table.check()
        for known, tokens in held.items():
            assert_cached(table, known, tokens)
    assert len(held) > 3

"""Which sequence has which slot: growth, reuse, forks that copy little, limits."""

from __future__ import annotations

import random

import pytest
import torch

from unspool.errors import CapacityError
from unspool.prefixes import common_prefix
from unspool.runtimes.kv import slot_table
from unspool.runtimes.kv.lazy_memory import CAN_GIVE_BACK
from unspool.runtimes.kv.limits import Limits
from unspool.runtimes.kv.pool import LayerLayout, SlotPool, size_class
from unspool.runtimes.kv.slot import Slot, longest_prefix_match
from unspool.runtimes.kv.slot_table import SlotTable

LAYOUT = (LayerLayout(2, 4, 3, torch.float32, torch.device("cpu")),) * 2


def number_of(token: int, position: int) -> float:
    return token * 1000.0 + position


def write(table: SlotTable, seq: int, tokens: list[int], *, invariant: bool = False) -> Slot:
    """Stand in for a pass: what is cached of a token is a number made of it and its position."""
    (slot,) = table.reserve([(seq, len(tokens))])
    for offset, token in enumerate(tokens):
        for tensor in (*slot.pool.keys, *slot.pool.values):
            tensor[slot.index, :, slot.length + offset] = number_of(token, slot.length + offset)
    table.advance(seq, tokens, invariant=invariant, nonfinite=False)
    return slot


@pytest.fixture
def copied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The positions [start, stop) of every copy between slots."""
    ranges: list[tuple[int, int]] = []
    copy = SlotPool.copy

    def count(self: SlotPool, index: int, source: SlotPool, source_index: int, start: int, stop: int) -> None:
        if start < stop:
            ranges.append((start, stop))
        copy(self, index, source, source_index, start, stop)

    monkeypatch.setattr(SlotPool, "copy", count)
    return ranges


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


def test_the_slot_that_a_sequence_has_outgrown_keeps_nothing() -> None:
    table = SlotTable(LAYOUT)
    small = write(table, 0, [*range(60)])
    write(table, 0, [*range(60, 70)])
    assert small.length == 0
    assert table.find([*range(70)], least=1, invariant=False) == (table.live[0], 70)


@pytest.mark.skipif(not CAN_GIVE_BACK, reason="this system keeps memory that is given back")
def test_free_slots_keep_no_more_than_live_sequences_once_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_table, "CACHED_TOKENS", 100)
    table = SlotTable(LAYOUT)
    for seq in range(4):
        write(table, seq, [seq] * 50)
    for seq in range(4):
        table.release(seq)
    assert [table.find([seq] * 50, least=50, invariant=False) is not None for seq in range(4)] == [True] * 4
    write(table, 4, [4] * 100)  # in a larger slot; 200 tokens were live at once, so 100 can stay
    assert [table.find([seq] * 50, least=50, invariant=False) is not None for seq in range(4)] == [False] * 2 + [
        True
    ] * 2
    table.check()


@pytest.mark.parametrize("seed", range(4))
def test_all_slots_hold_no_more_than_live_sequences_once_held(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot_table, "CACHED_TOKENS", 0)
    table, rng, most = SlotTable(LAYOUT), random.Random(seed), 0
    for seq in range(200):
        write(table, seq, [seq + rng.randrange(3)] * rng.randrange(1, 90))
        most = max(most, table.num_live_tokens)
        held = {id(slot): slot.length for slots in table._free.values() for slot in slots}
        if CAN_GIVE_BACK:
            assert sum(held.values()) + table.num_live_tokens <= most
        table.check()
        for each in rng.sample(sorted(table.live), rng.randrange(min(3, len(table.live)) + 1)):
            table.release(each)


def test_a_fork_into_the_slot_of_a_dropped_sibling_copies_only_what_differs(copied: list[tuple[int, int]]) -> None:
    table, prompt = SlotTable(LAYOUT), list(range(40))
    write(table, 0, prompt)
    table.fork(0, 1)
    table.fork(0, 2)
    write(table, 0, [100, 101])
    dropped = write(table, 1, [100, 102, 103])
    write(table, 2, [104])
    table.release(1)
    copied.clear()
    table.fork(0, 3)
    assert table.live[3] is dropped and copied == [(41, 42)]
    assert_cached(table, 3, [*prompt, 100, 101])
    table.check()


def test_what_was_computed_in_company_is_not_reused_for_an_exact_sequence() -> None:
    table, tokens = SlotTable(LAYOUT), [1, 2, 3, 4]
    write(table, 0, tokens[:2], invariant=True)
    write(table, 0, tokens[2:])
    write(table, 1, tokens, invariant=True)
    in_company = table.live[0]
    in_company.pool.keys[0][in_company.index] = -1.0
    table.release(0)
    table.fork(1, 2)
    assert table.live[2] is in_company and table.live[2].num_invariant_tokens == 4
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


def test_a_pool_that_is_full_is_moved_into_a_larger_one() -> None:
    table = SlotTable(LAYOUT)
    for seq in range(9):
        (slot,) = table.reserve([(seq, 30)])
        for tensor in (*slot.pool.keys, *slot.pool.values):
            tensor[slot.index, :, :30] = seq + 1
        table.advance(seq, [seq] * 30, invariant=True, nonfinite=False)
        if seq == 3:
            table.release(2)
    table.check()
    assert len({id(slot.pool) for slot in table.live.values()}) == 1
    assert sorted(slot.number for slot in table.live.values()) == [
        slot.index for slot in sorted(table.live.values(), key=lambda slot: slot.number)
    ]
    for seq, slot in table.live.items():
        for tensor in (*slot.pool.keys, *slot.pool.values):
            assert bool((tensor[slot.index, :, :30] == seq + 1).all()) and not tensor[slot.index, :, 30:].any()
    again = table.match_prefix(50, [4] * 30, least=5, invariant=True)
    assert again == 30 and bool((table.live[50].pool.keys[0][table.live[50].index, :, :30] == 5).all())


def test_pools_are_no_larger_than_they_may_be() -> None:
    table = SlotTable(LAYOUT)
    for seq in range(40):
        write(table, seq, [seq] * 1000)
    pools = {id(slot.pool): slot.pool for slot in table.live.values()}
    assert [pool.num_tokens for pool in pools.values()] == [1 << 14] * 3
    table.check()


@pytest.mark.parametrize("limits", [Limits(max_tokens=700), Limits(soft_max_tokens=700)])
def test_under_a_limit_pools_move_only_if_there_is_room_for_both(limits: Limits) -> None:
    """A pool of eight slots takes 512 tokens, and the larger one that it would move into 1,024."""
    table, roomy = SlotTable(LAYOUT, limits), SlotTable(LAYOUT, Limits(max_tokens=800))
    for seq in range(9):
        write(table, seq, [seq] * 60)
        write(roomy, seq, [seq] * 60)
    assert len({id(slot.pool) for slot in table.live.values()}) == 2
    assert len({id(slot.pool) for slot in roomy.live.values()}) == 1


@pytest.mark.parametrize("limits", [Limits(max_tokens=600), Limits(soft_max_tokens=600)])
def test_under_a_limit_idle_pools_make_room(limits: Limits) -> None:
    table = SlotTable(LAYOUT, limits)
    for seq in range(8):
        write(table, seq, [seq] * 60)
    for seq in range(8):
        table.release(seq)
    write(table, 9, [9] * 600)
    assert table.num_slot_tokens <= 1200
    table.check()


def test_a_soft_limit_refuses_nothing_and_grows_slot_by_slot_beyond_it() -> None:
    table = SlotTable(LAYOUT, Limits(soft_max_sequences=2, soft_max_tokens=100))
    for seq in range(12):
        write(table, seq, [seq] * 60)
    assert table.num_slot_tokens == 12 * 64
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


# --- recalling ----------------------------------------------------------------------------------------------------

PROMPT = list(range(100, 140))


def recall(table: SlotTable, seq: int, tokens: list[int], *, least: int = 1, invariant: bool = False) -> int:
    """Open a sequence with what is there, and see that it is the right thing."""
    count = table.match_prefix(seq, tokens, least=least, invariant=invariant)
    if count:
        assert_cached(table, seq, tokens[:count])
    else:
        assert seq not in table.live
    table.check()
    return count


def test_a_new_sequence_begins_with_what_a_live_one_holds(copied: list[tuple[int, int]]) -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, [*PROMPT, 1, 2])
    assert recall(table, 1, [*PROMPT, 3, 4]) == 40 and copied == [(0, 40)]
    write(table, 1, [3, 4])
    write(table, 0, [5])
    assert_cached(table, 0, [*PROMPT, 1, 2, 5])
    assert_cached(table, 1, [*PROMPT, 3, 4])


def test_what_a_released_sequence_has_left_is_taken_up_in_place(copied: list[tuple[int, int]]) -> None:
    table = SlotTable(LAYOUT)
    left = write(table, 0, PROMPT)
    table.release(0)
    assert recall(table, 1, [*PROMPT, 3, 4]) == 40
    assert table.live[1] is left and not copied


def test_what_stands_behind_a_shared_beginning_stays_remembered(copied: list[tuple[int, int]]) -> None:
    """A conversation may go on, whoever has begun like it meanwhile."""
    table = SlotTable(LAYOUT)
    write(table, 0, [*PROMPT, 1, 2, 3])
    table.release(0)
    assert recall(table, 1, [*PROMPT, 7]) == 40 and copied == [(0, 40)]
    write(table, 1, [7])
    table.release(1)
    assert recall(table, 2, [*PROMPT, 1, 2, 3, 4]) == 43
    assert recall(table, 3, [*PROMPT, 7, 7]) == 41


def test_a_longer_sequence_is_recalled_into_a_slot_that_it_fits_in() -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, PROMPT)
    table.release(0)
    assert recall(table, 1, [*PROMPT, *range(40)]) == 40
    assert table.live[1].pool.capacity == 128


@pytest.mark.parametrize(("least", "expected"), [(40, 40), (41, 0)])
def test_fewer_than_asked_for_are_not_recalled(least: int, expected: int) -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, [*PROMPT, 1])
    assert recall(table, 1, [*PROMPT, 2], least=least) == expected


def test_only_what_was_computed_in_invariant_passes_is_recalled_for_one() -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, PROMPT[:30], invariant=True)
    write(table, 0, PROMPT[30:])
    assert recall(table, 1, PROMPT, invariant=True) == 30 and table.live[1].num_invariant_tokens == 30
    assert recall(table, 2, PROMPT) == 40 and table.live[2].num_invariant_tokens == 30
    write(table, 1, PROMPT[30:], invariant=True)
    assert recall(table, 3, PROMPT, invariant=True) == 40 and table.live[3].num_invariant_tokens == 40


def test_a_copy_of_what_is_exact_leaves_nothing_that_is_not(copied: list[tuple[int, int]]) -> None:
    table = SlotTable(LAYOUT, Limits(max_tokens=64))  # one slot of 64, then one more
    write(table, 0, PROMPT[:20])
    write(table, 1, PROMPT[:30], invariant=True)
    table.release(0)
    assert recall(table, 2, PROMPT, invariant=True) == 30 and copied == [(0, 30)]


def test_what_may_not_be_finite_is_not_recalled() -> None:
    table = SlotTable(LAYOUT)
    (slot,) = table.reserve([(0, 40)])
    table.advance(0, PROMPT, invariant=False, nonfinite=True)
    assert recall(table, 1, PROMPT) == 0
    table.release(0)
    assert recall(table, 1, PROMPT) == 0
    assert not slot.tokens


def test_what_other_weights_have_computed_is_not_recalled() -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, PROMPT)
    write(table, 1, PROMPT[:30])
    table.release(1)
    table.forget_free()
    assert recall(table, 2, PROMPT) == 0
    table.release(0)
    assert recall(table, 2, PROMPT) == 0
    write(table, 2, PROMPT)
    assert recall(table, 3, PROMPT) == 40
    table.fork(2, 4)
    assert_cached(table, 4, PROMPT)


def test_a_slot_of_another_context_is_not_recalled() -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, PROMPT).context = 7
    assert recall(table, 1, PROMPT) == 0


def test_a_recall_that_finds_no_room_opens_nothing() -> None:
    for limits in ({"max_tokens": 79}, {"max_sequences": 1}):
        table = SlotTable(LAYOUT, Limits(**limits))
        write(table, 0, PROMPT)
        with pytest.raises(CapacityError):
            table.match_prefix(1, PROMPT, least=1, invariant=False)
        assert list(table.live) == [0]
        table.check()


def test_what_was_of_use_last_is_overwritten_last() -> None:
    table = SlotTable(LAYOUT)
    for prompt in range(9):  # one more than there are slots: the first is gone
        write(table, prompt, [prompt] * 20)
        table.release(prompt)
    assert table.num_slot_tokens == 512, "no pool grows for what is remembered"
    recalled = [recall(table, 100 + prompt, [prompt] * 20, least=8) for prompt in (1, 8)]
    assert recalled == [20, 20]
    for seq in (101, 108):
        table.release(seq)
    for prompt in range(20, 26):
        write(table, prompt, [prompt] * 20)
        table.release(prompt)
    assert [recall(table, 200 + prompt, [prompt] * 20, least=8) for prompt in (1, 8, 2, 5)] == [20, 20, 0, 0]


def test_a_beginning_that_comes_up_again_and_again_stays() -> None:
    table = SlotTable(LAYOUT)
    write(table, 0, [*PROMPT, 1])
    table.release(0)
    for seq in range(1, 30):
        assert recall(table, seq, [*PROMPT, seq + 1], least=8) == 40
        write(table, seq, [seq + 1])
        table.release(seq)
        write(table, 1000 + seq, [seq])
        table.release(1000 + seq)


def test_slots_that_came_back_together_are_taken_side_by_side() -> None:
    table = SlotTable(LAYOUT)
    for seq in range(16):
        write(table, seq, [seq])
    for seq in random.Random(3).sample(range(16), 16):
        table.release(seq)
    for seq in range(20, 25):
        write(table, seq, [seq])
    assert [table.live[seq].number for seq in range(20, 25)] == [0, 1, 2, 3, 4]


def test_most_alike_is_what_a_plain_search_finds() -> None:
    rng = random.Random(2)
    pool = SlotPool(LAYOUT, 64, 1)
    for _ in range(300):
        slots = []
        for number in range(rng.randrange(6)):
            tokens = [rng.randrange(2) for _ in range(rng.randrange(9))]
            slot = Slot(
                pool, 0, number, tokens, num_invariant_tokens=rng.randrange(len(tokens) + 1), context=rng.randrange(2)
            )
            slots.append(slot)
        tokens, least, invariant = (
            [rng.randrange(2) for _ in range(rng.randrange(9))],
            rng.randrange(1, 4),
            rng.random() < 0.5,
        )
        shared = []
        for slot in slots:
            count = next((n for n in range(9) if slot.tokens[: n + 1] != tokens[: n + 1] or n == len(tokens)), 9)
            shared.append(0 if slot.context else min(count, slot.num_invariant_tokens) if invariant else count)
        most = max(shared, default=0)
        found = longest_prefix_match(slots, tokens, 0, least=least, invariant=invariant)
        assert (found and (found.slot.number, found.length)) == ((shared.index(most), most) if most >= least else None)


def test_a_long_random_life_keeps_every_sequence_apart() -> None:
    rng, table = random.Random(1), SlotTable(LAYOUT, Limits(max_tokens=2000, max_sequences=12))
    held: dict[int, list[int]] = {}
    num_recalled = 0
    for step in range(900):
        kind = rng.choice(["grow", "grow", "grow", "fork", "truncate", "release", "recall", "recall"])
        seq = rng.choice(list(held)) if held and rng.random() < 0.8 else step
        try:
            if kind == "grow":
                tokens = [rng.randrange(3) for _ in range(rng.choice([1, 1, 2, 30, 100]))]
                write(table, seq, tokens)
                held[seq] = held.get(seq, []) + tokens
            elif kind == "fork" and seq in held:
                table.fork(seq, step + 10_000)
                held[step + 10_000] = list(held[seq])
            elif kind == "recall" and step not in held:
                tokens = [*held.get(seq, [])[: rng.randrange(40)], rng.randrange(3), rng.randrange(3)]
                count = table.match_prefix(step, tokens, least=rng.choice([1, 5]), invariant=False)
                num_recalled += count > 0
                held |= {step: tokens[:count]} if count else {}
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
        assert table.live.keys() == held.keys()
    assert len(held) > 3 and num_recalled > 30

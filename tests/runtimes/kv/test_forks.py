"""What beam search copies of the cache: the ends of beams that forked, and nothing else."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest

import unspool
from tests.tiny_models import VOCAB_SIZE, tiny_model
from unspool.runtimes.kv.attention_plan import AttentionPlan
from unspool.runtimes.kv.pool import SlotPool, size_class
from unspool.runtimes.kv.segments import Segment, decode_runs
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.kv.slot_table import SlotTable
from unspool.types import Seq

BEAMS, STEPS, PROMPT = 5, 64, 20


def alike(first: list[int], second: list[int]) -> int:
    """Return how many leading tokens are the same."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


class Fork(NamedTuple):
    """One fork: tokens that had to be copied by what slots held before it, and those that were."""

    needed: int
    copied: int


class Spy:
    """Watches slots while requests run.

    forks: in order. moved: tokens copied otherwise, because a sequence had outgrown its slot, or slots their pool.
    runs: calls of attention that each pass took for each pool.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.forks: list[Fork] = []
        self.moved = 0
        self.runs: list[float] = []
        self._copied = 0
        fork, move, copy, plan = SlotTable.fork, SlotTable._move, SlotPool.copy, AttentionPlan.__init__

        def spied_copy(pool: SlotPool, index: int, source: SlotPool, source_index: int, start: int, stop: int) -> None:
            self._copied += max(0, stop - start)
            copy(pool, index, source, source_index, start, stop)

        def spied_fork(table: SlotTable, seq: Seq, child: Seq) -> None:
            self.moved, self._copied = self.moved + self._copied, 0
            needed = self._needed(table, table.live[seq])
            fork(table, seq, child)
            self.forks.append(Fork(needed, self._copied))
            self._copied = 0

        def spied_move(table: SlotTable, old: SlotPool, new: SlotPool) -> SlotPool:
            before, self._copied = self._copied, 0
            result = move(table, old, new)
            self.moved, self._copied = self.moved + self._copied, before
            return result

        def spied_plan(self_: AttentionPlan, spans: list[Segment], *args: object) -> None:
            plan(self_, spans, *args)  # type: ignore[arg-type]
            if not self_.blocks:
                runs = decode_runs(sorted(spans, key=lambda span: span.row))
                self.runs.append(len(runs) / len({id(run.pool) for run in runs}))

        monkeypatch.setattr(SlotPool, "copy", spied_copy)
        monkeypatch.setattr(SlotTable, "fork", spied_fork)
        monkeypatch.setattr(SlotTable, "_move", spied_move)
        monkeypatch.setattr(AttentionPlan, "__init__", spied_plan)

    @staticmethod
    def _needed(table: SlotTable, parent: Slot) -> int:
        free = table._free.get(size_class(parent.length + 1), [])
        return parent.length - max((alike(parent.tokens, slot.tokens) for slot in free), default=0)


@pytest.mark.parametrize("num_prompts", [1, 3])
def test_beam_search_copies_the_ends_of_beams_that_forked(num_prompts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, spy = random.Random(0), Spy(monkeypatch)
    prompts = [[rng.randrange(3, VOCAB_SIZE) for _ in range(PROMPT)] for _ in range(num_prompts)]
    lm = unspool.load(tiny_model("gpt2"))
    lm.generate(prompts, num_beams=BEAMS, max_new_tokens=STEPS, min_new_tokens=STEPS)
    assert len(spy.forks) > STEPS / 2
    assert [fork.copied for fork in spy.forks] == [fork.needed for fork in spy.forks]
    # A cache reordered as a whole copies every beam's tokens in every step.
    whole = num_prompts * BEAMS * sum(PROMPT + step for step in range(STEPS))
    assert sum(fork.copied for fork in spy.forks) < whole / 20
    # Beams pass the smallest slots once, and take their tokens with them; pools that double move what they hold, which
    # makes one move a sequence over all doublings, in each of the two sizes.
    assert spy._copied + spy.moved <= num_prompts * BEAMS * (64 + 2 * 64)
    # Beams stay side by side, so that one call attends them; at first others' slots may lie between.
    assert sum(spy.runs) / len(spy.runs) < 1.5

"""The table of cases holds together."""

import itertools

import pytest

from benchmarks.cases import PEERS, cases
from benchmarks.checkpoints import checkpoints
from benchmarks.goals import GOALS, LIMITS, OUTSIDE_CASE
from benchmarks.prompts import mixed_prompts, prompt
from benchmarks.sides.side import SIDES
from benchmarks.work import Case, Work


def all_cases(quick: bool = False) -> list[Case]:
    return cases(checkpoints(quick=quick), quick=quick)


def test_names_are_unique_and_quick_runs_have_the_same():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names)
    assert names == [case.name for case in all_cases(quick=True)]


def test_each_checkpoint_is_loaded_once():
    groups = [name for name, _ in itertools.groupby(case.checkpoint for case in all_cases())]
    assert len(set(groups)) == len(groups)


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_a_case_fits_its_checkpoint_and_begins_with_unspool(case: Case):
    sizes = checkpoints(quick=False)
    assert case.entries[0].side in ("unspool", "startup")
    assert {entry.side for entry in case.entries} <= set(SIDES)
    assert len({entry.label for entry in case.entries}) == len(case.entries)
    assert (case.kind == "peers") == any(entry.side in PEERS for entry in case.entries)
    for work in (entry.work for entry in case.entries if case.checkpoint in sizes):
        size = sizes[case.checkpoint]
        assert all(len(ids) + work.new_tokens <= size.longest for ids in work.prompts)
        assert all(0 < token < size.vocab_size for ids in work.prompts for token in ids)


@pytest.mark.parametrize("goal", [*GOALS, *LIMITS], ids=lambda goal: f"{goal.case}-{goal.label}")
def test_every_goal_is_measured(goal):
    found = {case.name: case for case in all_cases()}
    assert goal.label in [entry.label for entry in found[goal.case].entries]
    assert OUTSIDE_CASE in found


def test_prompts_are_the_same_in_every_run():
    size = checkpoints(quick=False)["gpt2-float32"]
    assert prompt(size, 32) == prompt(size, 32) != prompt(size, 32, number=1)
    mixed = mixed_prompts(size, 64)
    assert mixed == mixed_prompts(size, 64)
    assert len(set(mixed)) == 64
    assert {len(ids) for ids in mixed} == {len(ids) for ids in mixed_prompts(size, 16)}
    assert (min(map(len, mixed)), max(map(len, mixed))) == (3, 138)


def test_work_survives_the_way_to_a_worker():
    work = Work(prompts=((1, 2), (3,)), new_tokens=5, options={"num_beams": 2}, batch_size=1, text=True)
    assert Work.from_dict(work.to_dict()) == work
    brief = Work(prompts=(tuple(range(1, 99)), (3,)), new_tokens=64, watch_first=True, options={"num_beams": 2}).brief()
    assert [len(ids) for ids in brief.prompts] == [32, 1]
    assert (brief.new_tokens, brief.watch_first, brief.options) == (32, False, {"num_beams": 2})

"""Who plays when, and what is recorded of it; the crew is played here as well."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.contest import Contest
from benchmarks.crew import WorkerFailed
from benchmarks.sides.side import Unavailable
from benchmarks.work import Case, Entry, Work

WORK = Work(prompts=((1, 2), (3, 4, 5)), new_tokens=3)
TOKENS = [[5, 6, 7], [8, 9, 10]]


class FakeCrew:
    """Answers at once; an answer that is an exception is raised. Notes who was asked to do how much."""

    def __init__(self, answers: Mapping[str, list[Any]]) -> None:
        self.answers = {side: iter(script) for side, script in answers.items()}
        self.calls: list[tuple[str, int]] = []
        self.prompts: list[tuple[str, Any]] = []
        self.dismissed: list[str | None] = []
        self.before: list[tuple[str, Any]] = []

    def load(self, side: str, checkpoint: Path, options: Mapping[str, Any]) -> str:
        if options.get("absent"):
            raise Unavailable(f"{side} is not here")
        return side

    def facts(self, key: str) -> dict[str, Any]:
        return {"info": f"{key} as it is", "versions": {key: "1"}, "seconds": 0.5, "memory": 7}

    def run(self, key: str, work: Mapping[str, Any], *, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        self.before.append((key, before))
        self.calls.append((key, work["new_tokens"]))
        self.prompts.append((key, work["prompts"]))
        if key == "bandwidth":
            return {"parts": {"bytes_per_second": 1e10}}
        answer = next(self.answers[key])
        if isinstance(answer, Exception):
            raise answer
        rest = {"first_seconds": None, "passes": 3, "parts": {}, "peak": 9, "token_ids": TOKENS}
        return {**rest, **answer}

    def dismiss(self, *, but: str | None = None) -> None:
        self.dismissed.append(but)


def run(answers: Mapping[str, list[Any]], *, runs: int, load: Mapping[str, Any] | None = None) -> tuple[Any, FakeCrew]:
    crew = FakeCrew(answers)
    entries = tuple(Entry(label=side, side=side, work=WORK, load=load or {}, bytes_per_weight=2.0) for side in answers)
    case = Case(name="a/b", title="b on a", checkpoint="a", entries=entries)
    contest = Contest(crew, {"a": Path("a")}, {"a": 100}, bandwidth=64)  # type: ignore[arg-type]
    return contest.run(case, runs=runs, say=lambda words: None), crew


def seconds(*values: float) -> list[dict[str, float]]:
    return [{"seconds": value} for value in values]


def test_sides_warm_up_and_then_take_turns():
    record, crew = run({"ours": seconds(9, 1, 2), "theirs": seconds(9, 3, 4)}, runs=2)
    turn = [("bandwidth", 0), ("ours", 3), ("theirs", 3)]
    assert crew.calls == [("ours", 3), ("theirs", 3), *turn, *turn]
    assert [entry["seconds"] for entry in record["entries"]] == [[1, 2], [3, 4]]
    assert record["bandwidths"] == [1e10, 1e10]
    ours = record["entries"][0]
    assert (ours["bytes_per_pass"], ours["loaded_bytes"], ours["peak_bytes"]) == (200.0, 7, 9)


def test_each_round_has_prompts_of_its_own_and_they_are_the_same_for_all():
    _, crew = run({"ours": seconds(9, 1, 2), "theirs": seconds(9, 3, 4)}, runs=2)
    for side in ("ours", "theirs"):
        assert [prompts for key, prompts in crew.prompts if key == side] == [
            ((1, 2), (3, 4, 5)),
            ((2, 1), (4, 5, 3)),
            ((1, 2), (5, 3, 4)),
        ]


def test_a_pass_over_the_weights_precedes_each_round():
    _, crew = run({"ours": seconds(9, 1, 2), "startup": seconds(9, 3, 4)}, runs=2)
    ours = [before for key, before in crew.before if key == "ours"]
    assert ours[0] is None and ours[1] == ours[2]
    assert (ours[1]["prompts"], ours[1]["new_tokens"], ours[1]["options"]) == (((1,),), 1, {})
    assert [before for key, before in crew.before if key != "ours"] == [None] * 5, "a process reads no weights"


def test_every_round_is_compared():
    script = [{"seconds": 1.0, "token_ids": ids} for ids in (TOKENS, TOKENS, [TOKENS[0], [0]])]
    record, _ = run({"ours": seconds(1, 1, 1), "theirs": script}, runs=2)
    assert record["entries"][1]["differences"] == [[1, 1, 0]]


@pytest.mark.parametrize("when", [0, 1, 2])
def test_a_side_that_fails_is_recorded_and_the_others_go_on(when: int):
    script: list[Any] = seconds(9, 3, 4)
    script[when] = WorkerFailed("out of luck")
    record, crew = run({"ours": seconds(9, 1, 2), "theirs": script}, runs=2)
    ours, theirs = record["entries"]
    assert (ours["status"], ours["seconds"]) == ("ok", [1, 2])
    assert (theirs["status"], theirs["reason"]) == ("failed", "out of luck")
    assert theirs["seconds"] == [3][: max(0, when - 1)]
    assert [side for side, _ in crew.calls].count("theirs") == when + 1


def test_an_absent_side_is_no_failure():
    record, crew = run({"ours": []}, runs=1, load={"absent": True})
    (ours,) = record["entries"]
    assert (ours["status"], ours["reason"], ours["seconds"]) == ("unavailable", "ours is not here", [])
    assert crew.calls == [("bandwidth", 0)]


@pytest.mark.parametrize(
    ("theirs", "differences"),
    [
        (TOKENS, []),
        ([[5, 6, 7], [8, 0, 10]], [[0, 1, 1]]),
        ([[5, 6], [0, 9, 10]], [[0, 0, 2], [0, 1, 0]]),
    ],
)
def test_tokens_are_compared_with_the_first_sides(theirs: list[list[int]], differences: list[list[int]]):
    script = [{"seconds": 1.0, "token_ids": theirs}] * 2
    record, _ = run({"ours": seconds(1, 1), "theirs": script}, runs=1)
    assert [entry["differences"] for entry in record["entries"]] == [None, differences]


def test_the_yardstick_stays_when_the_checkpoint_changes():
    crew = FakeCrew({"ours": seconds(1, 1)})
    contest = Contest(crew, {"a": Path("a")}, {}, bandwidth=64)  # type: ignore[arg-type]
    entries = (Entry(label="ours", side="ours", work=WORK),)
    contest.run(Case(name="a/b", title="", checkpoint="a", entries=entries), runs=1, say=lambda words: None)
    contest.change_checkpoint()
    assert crew.dismissed == ["bandwidth"]

"""The trial of a linear layer, with a clock that counts calls."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from unspool.kernels.library import kernels, obstacle
from unspool.runtimes.weights import trial
from unspool.runtimes.weights.trial import Shape, Trial
from unspool.tuning import TRIAL_ROUNDS, TRIAL_ROWS

SHAPE = Shape(24, 40, torch.float32, 1)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """Return the products and the readings of other memory, in order."""
    found: list[tuple[str, int]] = []

    def noted(name: str, rows: torch.Tensor) -> torch.Tensor:
        assert rows.shape[1] == SHAPE.in_features and bool(rows.std() > 0.1 or len(rows) == 1)
        found.append((name, len(rows)))
        return rows

    def packing(weight: torch.Tensor, allocate: object = None) -> object:
        if allocate is None:
            return "tiny"
        assert weight.shape == (SHAPE.out_features, SHAPE.in_features) and bool(weight.std() > 0.1), "no zeros"
        return object()

    def calls(row: torch.Tensor) -> torch.Tensor:
        found.append(("call", len(row)))
        return row

    monkeypatch.setattr(trial, "PackedWeight", packing)
    monkeypatch.setattr(
        trial, "linear", lambda rows, weight: calls(rows) if weight == "tiny" else noted("native", rows)
    )
    monkeypatch.setattr(trial.F, "linear", lambda rows, _: noted("plain", rows))
    monkeypatch.setattr(trial, "last_level_cache", lambda: 1 << 12)
    monkeypatch.setattr(Trial, "_empty_caches", lambda self: found.append(("other", self._filler.nbytes)))
    return found


def test_other_memory_is_read_before_each_number_of_rows(notes: list[tuple[str, int]]) -> None:
    Trial().times(SHAPE)
    one = [(("other", 1 << 12), ("plain", rows), ("call", 1), ("native", rows)) for rows in TRIAL_ROWS]
    assert notes == [each for several in one for each in several] * TRIAL_ROUNDS


@pytest.mark.usefixtures("notes")
def test_the_shortest_time_of_each_counts() -> None:
    rounds = ([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0, 6.0], [7.0] * 8, [2.0, 8.0, 3.0, 3.0, 5.0, 5.0, 1.0, 9.0])
    # The clock is read before and after each product, and between rounds.
    readings = [[0.0, *(each for length in lengths for each in (0.0, length))] for lengths in rounds]
    times = itertools.accumulate(itertools.chain(readings[0][1:], *readings[1:]))
    found = Trial(clock=lambda: next(times)).times(SHAPE)
    assert found == {"plain": (2.0, 3.0, 5.0, 1.0), "native": (1.0, 1.0, 5.0, 6.0)}


def test_one_round_is_always_run_and_no_more_after_the_end(notes: list[tuple[str, int]]) -> None:
    found = Trial(clock=lambda: 10.0).times(SHAPE, until=5.0)
    assert [name for name, _ in notes].count("plain") == len(TRIAL_ROWS)
    assert found == dict.fromkeys(("plain", "native"), (0.0,) * len(TRIAL_ROWS))


@pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_real_trial_times_real_products(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "last_level_cache", lambda: 1 << 12)
    found = Trial().times(Shape(64, 48, dtype, 1))
    assert set(found) == {"plain", "native"}
    assert all(len(each) == len(TRIAL_ROWS) and all(0 < seconds < 60 for seconds in each) for each in found.values())


def test_streams_take_turns_with_one_row_and_with_five(
    notes: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[int] = []
    monkeypatch.setattr(trial, "set_streams", streams.append)
    monkeypatch.setattr(trial, "PackedWeight", lambda *_, **__: "weight")
    monkeypatch.setattr(trial, "linear", lambda rows, _: notes.append(("product", len(rows))))
    # Seconds of each product: one row with 0, 1 and 4 streams, three rounds; then five rows.
    seconds = [9.0, 3.0, 5.0, 9.0, 2.0, 6.0, 8.0, 4.0, 7.0, 8.0, 10.0, 1.0, 9.0, 11.0, 9.0, 9.0, 12.0, 8.0]
    times = itertools.accumulate(each for length in seconds for each in (0.0, length))
    assert Trial(clock=lambda: next(times)).streams() == {0: 16.0, 1: 12.0, 4: 6.0}
    assert streams == [0, 1, 4] * TRIAL_ROUNDS * 2
    one, five = ([("other", 1 << 12), ("product", rows)] * TRIAL_ROUNDS * 3 for rows in (1, 5))
    assert notes == one + five


@pytest.mark.parametrize(("free", "expected"), [(1 << 13, 1 << 10), (1 << 20, 1 << 12), (None, 1 << 12)])
def test_memory_of_a_trial_is_bounded(free: int | None, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "last_level_cache", lambda: 1 << 12)
    monkeypatch.setattr(trial, "available_memory", lambda: free)
    assert Trial()._filler.nbytes == expected


def files_of(folder: Path, sizes: Sequence[str]) -> None:
    for index, size in enumerate(sizes):
        (folder / f"index{index}").mkdir(exist_ok=True)
        (folder / f"index{index}" / "size").write_text(size + "\n")


@pytest.mark.parametrize(
    ("readings", "cpu_seconds", "expected"),
    [
        ([], [], False),
        ([1.0], [0.9], False),
        ([1.0, 1.1, 1.2, 3.0], [1.0, 1.1, 1.2, 2.9], False),
        ([1.0, 1.6, 1.7], [1.0, 1.6, 1.7], True),
        ([1.0, 1.0, 3.0], [1.0, 1.0, 2.9], False),
        ([3.0, 3.0, 3.0], [1.0, 1.0, 1.0], True),
    ],
    ids=["none", "one", "one slow", "most slow", "last slow", "all slow alike"],
)
def test_readings_of_memory_show_other_programs(
    readings: list[float], cpu_seconds: list[float], expected: bool
) -> None:
    trial_of_none = Trial.__new__(Trial)
    trial_of_none.readings, trial_of_none.cpu_seconds = readings, cpu_seconds
    assert trial_of_none.was_disturbed is expected


def test_the_last_level_cache_is_the_largest(tmp_path: Path) -> None:
    found = trial.last_level_cache.__wrapped__
    assert found(tmp_path) == 32 << 20
    files_of(tmp_path, ("48K", "2048K", "266240K"))
    assert found(tmp_path) == 260 << 20
    files_of(tmp_path, ("48K", "2048K", "1048576K"))
    assert found(tmp_path) == 512 << 20
    files_of(tmp_path, ("48K", "2048K", "much"))
    assert found(tmp_path) == 32 << 20

"""The choice of a form: the decision from times, and when trials run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kernels.levels import num_threads
from unspool.errors import OptionError
from unspool.runtimes.weights import autotune
from unspool.runtimes.weights.autotune import (
    AUTOTUNE,
    VARIABLE,
    best_forms,
    choose_streams,
    fastest,
    is_small,
    shape_of,
    tune,
)
from unspool.runtimes.weights.trial import Form, Shape, Times
from unspool.runtimes.weights.tuning_file import TuningFile

FLAT = (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ((0.5, 0.5, 0.5, 0.5), "native"),
        ((0.9, 0.9, 0.9, 0.9), "native"),
        ((0.95, 0.95, 0.95, 0.95), "plain"),  # hardly faster: noise can be as large
        ((1.2, 0.5, 0.5, 1.0), "native"),  # slower with one row, and much faster with more
        ((2.0, 0.5, 0.5, 1.0), "plain"),  # much slower with one row
        ((0.8, 0.8, 0.8, 3.0), "native"),  # a prompt is one pass, and a text has many
        ((0.8, 0.8, 0.8, 9.0), "plain"),  # prompts would be much slower
        ((1.0, 1.0, 1.0, 0.5), "plain"),
    ],
)
def test_only_a_clear_gain_leaves_the_plain_form(native: tuple[float, ...], expected: Form) -> None:
    assert fastest({"plain": FLAT, "native": native}) == expected


def test_a_small_loss_with_one_row_does_not_veto() -> None:
    """Microseconds of a layer of 3072 x 768 numbers in float32, on an Intel Xeon."""
    assert fastest({"plain": (221, 411, 450, 1600), "native": (253, 280, 330, 1500)}) == "native"


class Trials:
    """Stands for real trials: each of a shape takes one second of the replaced clock."""

    def __init__(self, times: Times) -> None:
        self.times_of_all, self.shapes, self.now, self.was_disturbed = times, [], 0.0, False
        self.events: list[object] = []
        """Trials of streams, numbers of streams that are set, and trials of shapes, in order."""
        self.seconds_of_streams, self.time_of_streams = {0: 3.0, 1: 2.0, 4: 1.0}, 0.0

    def __call__(self) -> Trials:
        return self

    def perf_counter(self) -> float:
        return self.now

    def times(self, shape: Shape, *, until: float) -> Times:
        self.shapes.append(shape)
        self.events.append(shape)
        self.now += 1.0
        return self.times_of_all

    def streams(self) -> dict[int, float]:
        self.events.append("streams")
        self.now += self.time_of_streams
        return self.seconds_of_streams


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trials:
    """Return replaced trials; the native form wins them. Times go to a file of this test."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(AUTOTUNE, "1")
    found = Trials({"plain": FLAT, "native": (0.5,) * 4})
    file = TuningFile(tmp_path / "linear.json")
    monkeypatch.setattr(autotune, "Trial", found)
    monkeypatch.setattr(autotune, "time", found)
    monkeypatch.setattr(autotune, "kernels", lambda: "kernels")
    monkeypatch.setattr(autotune, "set_streams", found.events.append)
    monkeypatch.setattr(autotune, "tuning_file", lambda: file)
    return found


def shape(width: int, height: int, dtype: torch.dtype = torch.float32) -> Shape:
    return shape_of(width, height, dtype)


def test_a_shape_is_timed_once_per_machine(trials: Trials, tmp_path: Path) -> None:
    assert best_forms([shape(512, 512)] * 2) == {shape(512, 512): "native"}
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "native"}
    assert trials.shapes == [shape(512, 512)]
    kept = TuningFile(tmp_path / "linear.json")
    assert list(kept.times) == trials.shapes and kept.seconds == 1.0


def test_times_of_a_busy_machine_are_for_this_process_only(trials: Trials, tmp_path: Path) -> None:
    trials.was_disturbed = True
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "native"}
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "native"} and len(trials.shapes) == 1
    assert not (tmp_path / "linear.json").exists()
    tune([shape(512, 512)], autotune.tuning_file(), again=True)
    assert TuningFile(tmp_path / "linear.json").times


def test_trials_end_when_their_time_is_used_up_and_the_largest_come_first(trials: Trials) -> None:
    shapes = [shape(512, 512), shape(1024, 4096), shape(1024, 1024), shape(400, 400)]
    forms = best_forms(shapes)
    assert trials.shapes == [shape(1024, 4096), shape(1024, 1024)], "two seconds, a second each"
    assert set(forms.values()) == {"native"}, "the others have the form of the most similar shape"
    best_forms([shape(2048, 2048)])
    assert len(trials.shapes) == 2, "the time is for all calls together"


def test_each_dtype_and_thread_count_is_timed_once_however_little_time_is_left(trials: Trials) -> None:
    autotune.tuning_file().seconds = 5.0
    narrow = [shape(512, 512, torch.bfloat16), shape(1024, 512, torch.bfloat16)]
    for _ in range(2):
        assert best_forms(narrow) == dict.fromkeys(narrow, "native")
    assert trials.shapes == [narrow[1]], "the largest one"
    with num_threads(torch.get_num_threads() + 1):
        assert best_forms([shape(512, 512, torch.bfloat16)])[shape(512, 512, torch.bfloat16)] == "native"
    assert len(trials.shapes) == 2


def test_the_most_similar_shape_decides(trials: Trials) -> None:
    file = autotune.tuning_file()
    file.seconds = 5.0
    file.times = {
        shape(512, 512): {"plain": FLAT, "native": (0.5,) * 4},
        shape(4096, 4096): {"plain": FLAT, "native": FLAT},
    }
    forms = best_forms([shape(600, 700), shape(3000, 5000)])
    assert list(forms.values()) == ["native", "plain"] and not trials.shapes


def test_tuning_again_times_everything_without_a_limit(trials: Trials) -> None:
    file = autotune.tuning_file()
    shapes = [shape(512, 512), shape(600, 600), shape(700, 700)]
    told: list[Shape] = []
    for _ in range(2):
        tune(shapes, file, again=True, tell=told.append)
    assert len(trials.shapes) == 6 and told == trials.shapes
    assert set(file.times) == set(shapes) and file.seconds == 0.0


@pytest.mark.parametrize(("forced", "expected"), [("plain", "plain"), ("native", "native")])
def test_a_form_can_be_forced(trials: Trials, monkeypatch: pytest.MonkeyPatch, forced: str, expected: Form) -> None:
    monkeypatch.setenv(VARIABLE, forced)
    assert best_forms([shape(512, 512)]) == {shape(512, 512): expected}
    assert not trials.shapes


def test_autotuning_can_be_turned_off(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTOTUNE, "0")
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "plain"} and not trials.shapes
    monkeypatch.setenv(AUTOTUNE, "2")
    with pytest.raises(OptionError, match=r"UNSPOOL_AUTOTUNE.*must be 0 or 1.*'2'"):
        best_forms([shape(512, 512)])


def test_streams_are_timed_before_shapes_once_per_machine_and_number_of_threads(trials: Trials, tmp_path: Path) -> None:
    trials.time_of_streams = 0.25
    for _ in range(2):
        best_forms([shape(512, 512)])
    assert trials.events == ["streams", 4, shape(512, 512), 4], "the times of shapes depend on the streams"
    kept = TuningFile(tmp_path / "linear.json")
    assert kept.streams == {torch.get_num_threads(): {0: 3.0, 1: 2.0, 4: 1.0}} and kept.seconds == 1.25
    with num_threads(torch.get_num_threads() + 1):
        trials.seconds_of_streams = {0: 1.0, 1: 1.02, 4: 1.01}
        choose_streams()
    assert trials.events[4:] == ["streams", 0]
    choose_streams(again=True)
    assert trials.events[6:] == ["streams", 0], "the new times count"
    assert autotune.tuning_file().seconds == 1.5


def test_streams_of_a_busy_machine_are_for_this_process_only(trials: Trials, tmp_path: Path) -> None:
    trials.was_disturbed = True
    for _ in range(2):
        choose_streams()
    assert trials.events == ["streams", 4, 4] and not (tmp_path / "linear.json").exists()


@pytest.mark.parametrize("case", ["no kernels", "no trials", "no packed layers"])
def test_streams_stay_as_they_are(case: str, trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    if case == "no packed layers":
        monkeypatch.setenv(VARIABLE, "plain")
        best_forms([shape(512, 512)])
    elif case == "no trials":
        monkeypatch.setenv(AUTOTUNE, "0")
        choose_streams()
    else:
        monkeypatch.setattr(autotune, "kernels", lambda: None)
        choose_streams()
    assert not trials.events


def test_large_layers_behave_like_cut_ones_and_small_ones_are_not_timed() -> None:
    assert shape(512, 50_000) == shape(512, 60_000)
    assert is_small(64, 64) and is_small(361, 363) and not is_small(512, 512)

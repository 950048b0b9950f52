"""The choice of a form: the decision from times, and when trials run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from unspool.errors import OptionError
from unspool.runtimes.weights import autotune
from unspool.runtimes.weights.autotune import AUTOTUNE, VARIABLE, best_forms, fastest, is_small, shape_of, tune
from unspool.runtimes.weights.forms import Form
from unspool.runtimes.weights.trial import Shape, Times
from unspool.runtimes.weights.tuning_file import TuningFile

FLAT = (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("packed", "expected"),
    [
        ((0.5, 0.5, 0.5, 0.5), "packed"),
        ((0.9, 0.9, 0.9, 0.9), "packed"),
        ((0.95, 0.95, 0.95, 0.95), "plain"),  # hardly faster: noise can be as large
        ((1.1, 0.5, 0.5, 1.0), "packed"),  # slower with one row, but not clearly
        ((1.2, 0.1, 0.1, 0.1), "plain"),  # clearly slower with one row
        ((0.1, 0.1, 0.1, 1.2), "plain"),  # prompts would be clearly slower
        ((1.0, 1.0, 1.0, 0.5), "packed"),
    ],
)
def test_only_a_clear_gain_leaves_the_plain_form(packed: tuple[float, ...], expected: Form) -> None:
    assert fastest({"plain": FLAT, "packed": packed}) == expected


def test_the_fastest_of_several_forms_is_taken() -> None:
    slow, fast = (0.8,) * 4, (0.7,) * 4
    assert fastest({"plain": FLAT, "packed": slow, "native": fast}) == "native"
    assert fastest({"plain": FLAT, "packed": fast, "native": slow}) == "packed"
    assert fastest({"plain": FLAT, "packed": fast, "native": (0.1, 0.1, 0.1, 2.0)}) == "packed"


def test_without_another_form_the_plain_one_stays() -> None:
    assert fastest({"plain": FLAT}) == "plain"


class Trials:
    """Stands for real trials: each takes one second of the replaced clock."""

    def __init__(self, times: Times) -> None:
        self.times_of_all, self.shapes, self.now, self.was_disturbed = times, [], 0.0, False

    def __call__(self) -> Trials:
        return self

    def perf_counter(self) -> float:
        return self.now

    def times(self, shape: Shape, forms: Sequence[Form], *, until: float) -> Times:
        assert tuple(forms) == ("plain", "packed")
        self.shapes.append(shape)
        self.now += 1.0
        return self.times_of_all


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trials:
    """Return replaced trials; the packed form wins them. Times go to a file of this test."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv(AUTOTUNE, "1")
    found = Trials({"plain": FLAT, "packed": (0.5,) * 4})
    file = TuningFile(tmp_path / "linear.json")
    monkeypatch.setattr(autotune, "Trial", found)
    monkeypatch.setattr(autotune, "time", found)
    monkeypatch.setattr(autotune, "tuning_file", lambda: file)
    monkeypatch.setattr(autotune, "packed_forms", lambda dtype: () if dtype == torch.float16 else ("packed",))
    return found


def shape(width: int, height: int, dtype: torch.dtype = torch.float32) -> Shape:
    return shape_of(width, height, dtype)


def test_a_shape_is_timed_once_per_machine(trials: Trials, tmp_path: Path) -> None:
    assert best_forms([shape(512, 512)] * 2) == {shape(512, 512): "packed"}
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "packed"}
    assert trials.shapes == [shape(512, 512)]
    kept = TuningFile(tmp_path / "linear.json")
    assert list(kept.times) == trials.shapes and kept.seconds == 1.0


def test_times_of_a_busy_machine_are_for_this_process_only(trials: Trials, tmp_path: Path) -> None:
    trials.was_disturbed = True
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "packed"}
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "packed"} and len(trials.shapes) == 1
    assert not (tmp_path / "linear.json").exists()
    tune([shape(512, 512)], autotune.tuning_file(), again=True)
    assert TuningFile(tmp_path / "linear.json").times


def test_trials_end_when_their_time_is_used_up_and_the_largest_come_first(trials: Trials) -> None:
    shapes = [shape(512, 512), shape(1024, 4096), shape(1024, 1024), shape(400, 400)]
    forms = best_forms(shapes)
    assert trials.shapes == [shape(1024, 4096), shape(1024, 1024)], "two seconds, a second each"
    assert set(forms.values()) == {"packed"}, "the others have the form of the most similar shape"
    best_forms([shape(2048, 2048)])
    assert len(trials.shapes) == 2, "the time is for all calls together"
    assert best_forms([shape(512, 512, torch.bfloat16)]) == {shape(512, 512, torch.bfloat16): "plain"}


def test_the_most_similar_shape_decides(trials: Trials) -> None:
    file = autotune.tuning_file()
    file.seconds = 5.0
    file.times = {
        shape(512, 512): {"plain": FLAT, "packed": (0.5,) * 4},
        shape(4096, 4096): {"plain": FLAT, "packed": FLAT},
        shape(4000, 4000): {"plain": FLAT},  # without the packed form: from a machine that lacked it
    }
    forms = best_forms([shape(600, 700), shape(3000, 5000)])
    assert list(forms.values()) == ["packed", "plain"] and not trials.shapes


def test_tuning_again_times_everything_without_a_limit(trials: Trials) -> None:
    file = autotune.tuning_file()
    shapes = [shape(512, 512), shape(600, 600), shape(700, 700)]
    told: list[Shape] = []
    for _ in range(2):
        tune(shapes, file, again=True, tell=told.append)
    assert len(trials.shapes) == 6 and told == trials.shapes
    assert set(file.times) == set(shapes) and file.seconds == 0.0


@pytest.mark.parametrize(("forced", "expected"), [("plain", "plain"), ("packed", "packed")])
def test_a_form_can_be_forced(trials: Trials, monkeypatch: pytest.MonkeyPatch, forced: str, expected: Form) -> None:
    monkeypatch.setenv(VARIABLE, forced)
    half = shape(512, 512, torch.float16)
    assert best_forms([shape(512, 512), half]) == {shape(512, 512): expected, half: "plain"}
    assert not trials.shapes


def test_autotuning_can_be_turned_off(trials: Trials, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(AUTOTUNE, "0")
    assert best_forms([shape(512, 512)]) == {shape(512, 512): "plain"} and not trials.shapes
    monkeypatch.setenv(AUTOTUNE, "2")
    with pytest.raises(OptionError, match=r"UNSPOOL_AUTOTUNE.*must be 0 or 1.*'2'"):
        best_forms([shape(512, 512)])


def test_large_layers_behave_like_cut_ones_and_small_ones_are_not_timed() -> None:
    assert shape(512, 50_000) == shape(512, 60_000)
    assert is_small(64, 64) and is_small(361, 363) and not is_small(512, 512)

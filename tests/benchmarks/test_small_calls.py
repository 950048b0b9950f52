"""The table of small calls, with one round: that it runs and compares equal tokens. Its figures are no test."""

from __future__ import annotations

import pytest
import torch
import transformers

from benchmarks.small_calls import main


def test_the_table_has_a_line_for_each_model(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--only", "gpt2", "t5", "--rounds", "1"])
    header, *lines = capsys.readouterr().out.splitlines()
    assert "first call" in header and [line.split()[0] for line in lines] == ["gpt2", "t5"]
    assert all(line.count("/") == 3 for line in lines)


def test_the_command_restores_the_settings_of_the_process(capsys: pytest.CaptureFixture[str]) -> None:
    before = torch.get_num_threads(), transformers.logging.get_verbosity()
    main(["--only", "gpt2", "--rounds", "1"])
    assert (torch.get_num_threads(), transformers.logging.get_verbosity()) == before

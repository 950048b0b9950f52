"""The name of the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from unspool.machine import cpu


@pytest.fixture(autouse=True)
def unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "cpu_key", cpu.cpu_key.__wrapped__)


def test_the_name_has_the_numbers_of_the_first_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text("model name\t: Some CPU\nmodel\t\t: 207\nstepping\t: 2\n\nprocessor : 1\nmodel : 9\n")
    monkeypatch.setattr(cpu, "_CPUINFO", file)
    assert cpu.cpu_key() == "Some CPU 207 2"


def test_without_a_description_the_platform_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "absent")
    assert cpu.cpu_key()

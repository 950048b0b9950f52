"""Building the kernels: with a compiler, without one, with one that fails."""

import json
import os
import runpy
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from unspool.kernels import build

SOURCES = Path(build.__file__).parent
NOT_BUILT = "built without kernels, models run on PyTorch's operators alone"


@pytest.fixture
def tool(tmp_path: Path) -> dict:
    """Return the build script as it is in a folder without a library."""
    for name in (*build.SOURCES, "build.py"):
        shutil.copy(SOURCES / name, tmp_path)
    return runpy.run_path(str(tmp_path / "build.py"))


def compiler(folder: Path, text: str) -> str:
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_without_a_compiler_nothing_is_built(tool, tmp_path, monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert tool["build_if_possible"]() == f"{NOT_BUILT}: no C++ compiler was found"
    assert not tool["is_current"]() and not tool["LIBRARY"].exists()


@pytest.mark.skipif(
    build.machine() not in build.LEVELS or os.name == "nt", reason="kernels do not exist for this machine"
)
def test_the_message_of_a_failing_compiler_is_passed_on(tool, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", compiler(tmp_path, "echo 'linear.cpp:1: error: unknown flag' >&2; exit 1"))
    assert tool["build_if_possible"]() == f"{NOT_BUILT}: compiler failed: linear.cpp:1: error: unknown flag"
    assert not tool["is_current"]()


def test_other_machines_have_no_kernels(tool, monkeypatch):
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert "kernels do not exist for" in tool["build_if_possible"]()


@pytest.mark.slow
@pytest.mark.skipif(build.compiler_path() is None or not build.is_current(), reason="no compiler here")
def test_a_library_is_built_once_and_again_for_changed_sources(tool, tmp_path):
    assert tool["build_if_possible"]().startswith("built the kernels in ")
    assert tool["is_current"]() and tool["build_if_possible"]() == "the kernels are up to date"
    names = {path.name for path in tmp_path.iterdir()} - {*build.SOURCES, "build.py", "__pycache__"}
    assert names == {"_kernels.so", "_kernels.json"}
    (tmp_path / "kernels.h").write_text((tmp_path / "kernels.h").read_text() + "// changed\n")
    assert not tool["is_current"]()


def test_a_library_of_another_machine_is_not_current(tool, monkeypatch):
    facts = {"source": tool["source_digest"](), "machine": build.machine(), "library": ""}
    tool["LIBRARY"].touch()
    tool["FACTS"].write_text(json.dumps(facts))
    assert tool["is_current"]()
    tool["FACTS"].write_text(json.dumps({**facts, "machine": "other"}))
    assert not tool["is_current"]()
    tool["FACTS"].write_text("{")
    assert not tool["is_current"]()


def test_the_build_script_needs_the_standard_library_alone():
    code = f"import runpy; runpy.run_path({str(SOURCES / 'build.py')!r})['source_digest']()"
    subprocess.run([sys.executable, "-I", "-S", "-c", code], check=True)

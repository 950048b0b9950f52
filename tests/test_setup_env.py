"""`make install` sees what state .venv is in."""

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tool(root: Path) -> ModuleType:
    """Return the tool as it would be in a project folder of its own."""
    (root / "tools").mkdir(parents=True)
    for name in ("pyproject.toml", "constraints.txt", "tools/setup_env.py"):
        shutil.copy(ROOT / name, root / name)
    spec = importlib.util.spec_from_file_location("setup_env", root / "tools" / "setup_env.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    """A project whose .venv is fresh and empty, made once: it takes seconds."""
    tool = load_tool(tmp_path_factory.mktemp("project") / "made")
    subprocess.run([sys.executable, "-m", "venv", tool.VENV], check=True)
    return tool


@pytest.fixture
def project(made: ModuleType, tmp_path: Path) -> ModuleType:
    return load_tool(tmp_path / "project")


def test_no_environment_is_a_fault(project: ModuleType):
    assert project.fault() == "there is none"
    assert not project.is_current()


def test_a_fresh_environment_can_be_built_upon_but_is_not_current(made: ModuleType):
    assert made.fault() is None
    assert not made.is_current()


def test_a_stamp_without_the_packages_does_not_count(made: ModuleType):
    made.STAMP.write_text(made.wanted_stamp())
    assert not made.is_current()
    made.STAMP.unlink()


def test_packages_with_the_stamp_count_until_something_changes(made: ModuleType, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(made, "PACKAGES", ("pip",))
    monkeypatch.setattr(made, "TOOLS", ())
    made.STAMP.write_text(made.wanted_stamp())
    assert made.is_current()
    (made.ROOT / "constraints.txt").write_text("torch==0.1\n")
    assert not made.is_current()
    shutil.copy(ROOT / "constraints.txt", made.ROOT)
    made.UNFINISHED.touch()
    assert not made.is_current()
    assert made.fault() == "its installation was interrupted"
    made.UNFINISHED.unlink()
    made.STAMP.unlink()


def only_a_folder(venv: Path, made: Path) -> None:
    venv.mkdir()


def a_file(venv: Path, made: Path) -> None:
    venv.write_text("")


def python_gone(venv: Path, made: Path) -> None:
    shutil.copytree(made, venv, symlinks=True)
    for name in ("python", "python3", Path(sys.executable).name, f"python3.{sys.version_info.minor}"):
        (venv / "bin" / name).unlink(missing_ok=True)


def pip_gone(venv: Path, made: Path) -> None:
    shutil.copytree(made, venv, symlinks=True)
    for path in venv.glob("lib/*/site-packages/pip*"):
        shutil.rmtree(path)


def configuration_gone(venv: Path, made: Path) -> None:
    shutil.copytree(made, venv, symlinks=True)
    (venv / "pyvenv.cfg").unlink()


def moved_here(venv: Path, made: Path) -> None:
    shutil.copytree(made, venv, symlinks=True)


@pytest.mark.skipif(sys.platform == "win32", reason="environments are laid out otherwise there")
@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (only_a_folder, "its Python or its pip does not run"),
        (a_file, "its Python or its pip does not run"),
        (python_gone, "its Python or its pip does not run"),
        (pip_gone, "its Python or its pip does not run"),
        (configuration_gone, "its Python or its pip does not run"),
        (moved_here, "it was not made for this folder"),
    ],
)
def test_what_cannot_be_built_upon_is_replaced(
    made: ModuleType, project: ModuleType, damage: Callable[[Path, Path], None], fault: str
):
    damage(project.VENV, made.VENV)
    assert fault in project.fault()


@pytest.mark.slow
def test_a_replaced_environment_works(project: ModuleType):
    project.VENV.write_text("in the way")
    project.make_environment("a test")
    assert project.runs(project.USABLE)
    assert project.fault() == "its installation was interrupted"
    project.UNFINISHED.unlink()
    assert project.fault() is None


def test_kernels_are_tried_once_per_sources_and_compiler(
    project: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    kernels = ROOT / "src" / "unspool" / "kernels"
    shutil.copytree(kernels, project.KERNELS.parent, ignore=shutil.ignore_patterns("_kernels.*"))
    project.VENV.mkdir()
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(project.ROOT))
    project.build_kernels()
    said = capsys.readouterr().out
    assert said.startswith("[install] built without kernels") and said.endswith(": no C++ compiler was found\n")
    project.build_kernels()
    assert capsys.readouterr().out == ""
    (project.ROOT / "c++").write_text("#!/bin/sh\nexit 1\n")
    (project.ROOT / "c++").chmod(0o755)
    project.build_kernels()
    assert "[install] built without kernels" in capsys.readouterr().out

"""The standard programs that people learn text generation from, each with a check at its end."""

from __future__ import annotations

import ast
import runpy
from importlib.util import find_spec
from pathlib import Path

import pytest
import transformers

PROGRAMS = sorted(path.stem for path in (Path(__file__).parent / "programs").glob("*.py"))
NEEDS = {"four_bit_code": "bitsandbytes"}

pytestmark = [
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_runs_and_its_last_lines_hold(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if (package := NEEDS.get(name)) and find_spec(package) is None:
        pytest.skip(f"pip install 'unspool[{package}]'")
    monkeypatch.chdir(tmp_path)
    transformers.set_seed(0)
    runpy.run_path(str(Path(__file__).parent / "programs" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out.strip(), "it has nothing to show"


def test_there_is_a_check_in_every_program() -> None:
    for name in PROGRAMS:
        tree = ast.parse((Path(__file__).parent / "programs" / f"{name}.py").read_text())
        assert any(isinstance(node, ast.Assert) for node in ast.walk(tree)), name

"""Each tuning constant names its unit, its machine and its date, and the package uses it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import unspool

PACKAGE = Path(unspool.__file__).parent
LINES = [line for line in (PACKAGE / "tuning.py").read_text("utf-8").splitlines() if re.match(r"[A-Z]", line)]
SOURCES = [path.read_text("utf-8") for path in PACKAGE.rglob("*.py") if path.name != "tuning.py"]


def definitions() -> list[str]:
    return [line for line in LINES if ": Final = " in line]


@pytest.mark.parametrize("line", definitions(), ids=lambda line: line.split(":")[0])
def test_a_constant_has_unit_machine_and_date_and_a_user(line: str) -> None:
    name, note = line.split(":")[0], line.partition("  # ")[2]
    unit, machine, date = note.split(" | ")
    assert unit and machine and re.fullmatch(r"\d{4}-\d\d-\d\d|not recorded", date)
    assert any(re.search(rf"\b{name}\b", source) for source in SOURCES), "no module uses it"

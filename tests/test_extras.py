"""Optional packages: an absent one is named with its pip line, and the extras are those of pyproject.toml."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from unspool import MissingExtra
from unspool.extras import EXTRAS, require_extra

PROJECT = tomllib.loads((Path(__file__).resolve().parent.parent / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_absent_package_is_named_with_the_line_that_installs_it(extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = EXTRAS[extra][0]
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks a module that must not be imported
    with pytest.raises(MissingExtra) as caught:
        require_extra(extra, "the reason")
    assert str(caught.value) == f'the reason, which needs {package}: pip install "unspool[{extra}]"'


@pytest.mark.parametrize("extra", EXTRAS)
def test_an_extra_installs_the_packages_that_it_needs(extra: str) -> None:
    declared = {re.split(r"[<>=!~ \[]", line)[0] for line in PROJECT["optional-dependencies"][extra]}
    assert declared == set(EXTRAS[extra])


def test_an_installed_package_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unspool.extras.find_spec", lambda name: name)
    require_extra("torchao", "the reason")

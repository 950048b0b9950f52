"""transformers' list of its models: the same as without us, read once, and nothing of ours is left in it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from transformers.utils import import_utils

from unspool.listing import listed_once

HOME = "transformers.utils.import_utils"

LISTED = """
import json, sys
from collections import Counter
opened = Counter()
def count(event, args):
    if event == "open" and isinstance(args[0], str) and args[0].endswith(".py"):
        opened[args[0]] += 1
sys.addaudithook(count)
import unspool
before = list(sys.meta_path)
unspool.load
import transformers.models
from transformers.utils import import_utils
imported = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
file = transformers.models.__file__
folder = file.removesuffix("__init__.py")
times = {n for name, n in opened.items() if name.startswith(folder) and name not in imported}
used = import_utils.define_import_structure(file)
import_utils.create_import_structure_from_path.cache_clear()
print(json.dumps(dict(
    times=sorted(times),
    models=len(transformers.models._class_to_module),
    same=used == import_utils.define_import_structure.__wrapped__(file),
    homes=[import_utils.fetch__all__.__module__, import_utils.create_import_structure_from_path.__module__],
    ours=[str(finder) for finder in sys.meta_path if "unspool" in type(finder).__module__],
    lost=[str(finder) for finder in before if finder not in sys.meta_path],
)))
"""


def test_transformers_reads_the_files_of_its_models_once_and_finds_in_them_what_it_finds_by_itself() -> None:
    done = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    listed = json.loads(done.stdout)
    assert listed["times"] == [1]
    assert listed["models"] > 1000
    assert listed["same"]
    assert listed["homes"] == [HOME, HOME]
    assert listed["ours"] == listed["lost"] == []


@pytest.fixture
def unlisted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """transformers as it is in the midst of its import: the functions are there, the models are not."""
    module = ModuleType(HOME)
    vars(module).update(
        create_import_structure_from_path=lambda path: [path],
        fetch__all__=import_utils.fetch__all__,
        define_import_structure=None,
    )
    monkeypatch.setitem(sys.modules, HOME, module)
    monkeypatch.delitem(sys.modules, "transformers.models", raising=False)
    return module


def hear(name: str = "transformers.anything") -> None:
    """Look for a module as an import does."""
    for finder in sys.meta_path:
        if "unspool" in type(finder).__module__:
            assert finder.find_spec(name, None) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "import os\n",
        '__all__ = ["One", "Two"]',
        'x = 1\n__all__ = ["One"]\n',
        'x = 1\r\n__all__ = ["One"]\r\n',
        'x = 1\r__all__ = ["One"]\r',
        '__all__ = [\n    "One",\n    "Two",\n]\n',
        '__all__ = ["Old"]\ny = 2\n__all__ = ["New"]\nz = 3\n',
        '__all__ = ["Old"]\n\f__all__ = ["New"]\n',
        'if True:\n    __all__ = ["Indented"]\n',
        'text = "__all__"\n',
        '__all__ = ["One"]\n__all__ += ["Two"]\n',
    ],
)
def test_names_are_read_as_transformers_reads_them(unlisted: ModuleType, text: str) -> None:
    with listed_once():
        hear()
        assert unlisted.fetch__all__ is not import_utils.fetch__all__
        assert unlisted.fetch__all__(text) == import_utils.fetch__all__(text)
    assert unlisted.fetch__all__ is import_utils.fetch__all__


def test_a_folder_is_asked_about_once_however_it_is_named(unlisted: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "__init__.py").touch()
    with listed_once():
        hear()
        first = unlisted.create_import_structure_from_path(tmp_path)
        assert first == [str(tmp_path)]
        for name in (str(tmp_path), str(tmp_path / "__init__.py")):
            assert unlisted.create_import_structure_from_path(name) is first


def test_the_functions_are_given_back_after_an_import_that_failed(unlisted: ModuleType) -> None:
    before, finders = dict(vars(unlisted)), list(sys.meta_path)
    with pytest.raises(ImportError), listed_once():
        hear()
        assert vars(unlisted) != before
        raise ImportError
    assert vars(unlisted) == before
    assert sys.meta_path == finders


def test_a_function_that_somebody_else_has_put_there_meanwhile_stays(unlisted: ModuleType) -> None:
    def another(text: str) -> list[str]:
        return []

    with listed_once():
        hear()
        unlisted.fetch__all__ = another
    assert unlisted.fetch__all__ is another


def test_of_two_threads_that_import_at_once_one_steps_in_and_gives_back(unlisted: ModuleType) -> None:
    before = dict(vars(unlisted))
    first, second = listed_once(), listed_once()
    first.__enter__()
    second.__enter__()
    hear()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert vars(unlisted) == before


@pytest.mark.parametrize("missing", ["create_import_structure_from_path", "fetch__all__", "define_import_structure"])
def test_a_transformers_without_these_functions_is_left_alone(unlisted: ModuleType, missing: str) -> None:
    delattr(unlisted, missing)
    before: dict[str, Any] = dict(vars(unlisted))
    with listed_once():
        hear()
        assert vars(unlisted) == before


def test_nothing_is_done_where_the_models_are_listed_already(
    unlisted: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers.models", ModuleType("transformers.models"))
    finders = sys.meta_path
    with listed_once():
        assert sys.meta_path is finders

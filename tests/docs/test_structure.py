"""docs/structure.md agrees with the code: every file is listed, imports point downward, the field's words are found."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from unspool.kernels.build import FACTS, LIBRARY

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "unspool"
PAGE = (ROOT / "docs" / "structure.md").read_text()


def listed_files() -> list[str]:
    """Return the paths of the list under "Files", relative to the package, folders with a slash."""
    block = re.search(r"^```text\nsrc/unspool/\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    assert block is not None
    folders: list[str] = []
    paths = []
    for line in block[1].splitlines():
        indent = len(line) - len(line.lstrip())
        name, words = line.split(maxsplit=1)
        assert words, f"{name} has no description"
        folders = folders[: indent // 4 - 1]
        paths.append("".join(folders) + name)
        if name.endswith("/"):
            folders.append(name)
    return paths


def layers() -> dict[str, int]:
    """Return the layer of every folder and module in the picture, 0 at the bottom."""
    found = {}
    for number, block in re.findall(r"subgraph L(\d+)\[.*?\]\n(.*?)\n    end", PAGE, re.DOTALL):
        for label in re.findall(r'\w+\["(.*?)"\]', block):
            found |= {name: int(number) - 1 for name in label.split(" · ")}
    return found


def room_of(module: str) -> str:
    """Return the folder, with a slash, or the module of the package that a dotted name is in."""
    name = module.split(".")[1]
    return f"{name}/" if (PACKAGE / name).is_dir() else name


def imports() -> Iterator[tuple[str, str, str]]:
    """Yield (file, its folder or module, the imported folder or module) of the imports that run with a module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent == PACKAGE and path.name == "__init__.py":
            continue
        name = ".".join(["unspool", *path.relative_to(PACKAGE).with_suffix("").parts])
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unspool"):
                modules = [node.module] if node.module != "unspool" else [f"unspool.{a.name}" for a in node.names]
                yield from ((str(path.relative_to(PACKAGE)), room_of(name), room_of(str(module))) for module in modules)


def test_every_file_is_listed_once_and_every_listed_file_exists():
    built = {LIBRARY, FACTS}
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts} - built
    folders = {path.parent for path in files} - {PACKAGE}
    present = [str(path.relative_to(PACKAGE)) for path in files if path.name != "__init__.py"]
    present += [f"{path.relative_to(PACKAGE)}/" for path in folders]
    listed = listed_files()
    assert len(set(listed)) == len(listed)
    hint = "add or delete its line under Files in docs/structure.md"
    assert set(present) == set(listed), f"{sorted(set(present) ^ set(listed))}: {hint}"


def test_every_path_in_the_text_exists():
    paths = set(re.findall(r"`((?:[a-z0-9_]+/)*[a-z0-9_]+(?:\.py|/))`", PAGE))
    roots = (PACKAGE, PACKAGE / "runtimes", PACKAGE / "engine", ROOT)
    assert paths and not {path for path in paths if not any((root / path).exists() for root in roots)}


def test_the_picture_has_every_folder_and_module():
    rooms = {name.split("/")[0] + "/" if "/" in name else name.removesuffix(".py") for name in listed_files()}
    assert set(layers()) == rooms - {"tale/", "py.typed"}


def test_imports_point_downward_in_the_picture():
    layer = layers()
    upward = [(path, room) for path, me, room in imports() if me != room and layer[room] > layer[me]]
    assert not upward


def test_the_arrows_of_the_picture_are_imports():
    nodes = {key: set(label.split(" · ")) for key, label in re.findall(r'(\w+)\["([^"]*)"\]', PAGE)}
    real = {(me, room) for _, me, room in imports()}
    for start, end in re.findall(r"^    (\w+) --> (\w+)$", PAGE, re.MULTILINE):
        assert any((a, b) in real for a in nodes[start] for b in nodes[end]), f"{start} does not import {end}"


WHERE = re.findall(r"^\| .*? \| `(.*?)` \| (.*?) \|$", PAGE[PAGE.index("## Where is ...?") :], re.MULTILINE)


@pytest.mark.parametrize(("word", "files"), WHERE, ids=[word for word, _ in WHERE])
def test_the_words_of_the_field_are_found_in_the_named_files(word: str, files: str):
    """`grep -i` for the word finds it in the docstring of each file's module or classes."""
    pattern = re.compile(word.replace("\\|", "|"), re.IGNORECASE)
    paths = re.findall(r"`([\w/]+\.py)`", files)
    assert paths
    for path in paths:
        tree = ast.parse((PACKAGE / path).read_text())
        documented = [node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)]
        docstrings = " ".join(ast.get_docstring(node) or "" for node in documented)
        found = bool(pattern.search(" ".join(docstrings.split())))
        assert found, f"no docstring of {path} has {word!r}"


def test_all_questions_are_asked():
    assert len(WHERE) == 29

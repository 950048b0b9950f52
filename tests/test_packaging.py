"""What a user meets first: names, version, declared packages, and how little an import costs."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "unspool"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HEAVY = ("torch", "transformers", "numpy", "huggingface_hub", "tokenizers", "safetensors")


def heavy_modules_after(code: str) -> list[str]:
    """Run the code in a Python of its own; return which heavy packages it imported."""
    report = f"\nimport sys\nprint(*(name for name in {HEAVY} if name in sys.modules), sep=',', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return [name for name in done.stderr.strip().splitlines()[-1].split(",") if name] if done.stderr.strip() else []


def imported_packages(folder: Path) -> set[str]:
    """Return the top-level names of all imports, lazy ones included."""
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.split(".")[0])
    return names


@cache
def classes_of_the_package() -> set[str]:
    texts = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    return set(re.findall(r"^class (\w+)", texts, re.MULTILINE))


def returns(function: object) -> str:
    """Return the return annotation as text."""
    return str(getattr(function, "__annotations__", {}).get("return", ""))


def test_every_exported_name_exists_and_the_list_is_sorted():
    import unspool

    assert unspool.__all__ == sorted(unspool.__all__)
    for name in unspool.__all__:
        assert getattr(unspool, name) is not None


def test_type_checkers_see_the_names_that_python_sees():
    """The imports under TYPE_CHECKING in `__init__.py` list the same names and modules as its table."""
    import unspool

    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    seen = {
        alias.asname: f"unspool.{alias.name}" if node.module == "unspool" else node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unspool")
        for alias in node.names
        if alias.name == alias.asname
    }
    assert seen == unspool._HOMES
    # With either of these, a type checker accepts every name, or finds none with `from unspool import *`.
    defined = {getattr(node, "name", None) or ast.unparse(node).split(" ")[0] for node in tree.body}
    assert not defined & {"__getattr__", "__all__"}


@pytest.mark.parametrize(
    "name", ["LanguageModel", "Chat", "ChatStream", "Engine", "Pipeline", "Stream", "load", "pipeline"]
)
def test_what_a_public_name_returns_is_public(name: str):
    """Every class of unspool in a return annotation can be imported from `unspool` or `unspool.types`."""
    import unspool.types

    value = getattr(unspool, name)
    members = [member for key, member in vars(value).items() if key[0] != "_"] if isinstance(value, type) else [value]
    functions = [getattr(member, "fget", member) for member in members]
    returned = {word for each in functions if callable(each) for word in re.findall(r"\w+", returns(each))}
    assert returned & classes_of_the_package() <= {*unspool.__all__, *vars(unspool.types)}


def test_the_directory_of_the_package_holds_the_public_names_alone():
    """In a Python of its own, after use has imported most submodules: Python makes each an attribute of the package."""
    code = """
import types, unspool
unspool.load().compare("Hello", max_new_tokens=1)
shown = [name for name in dir(unspool) if not name.startswith("_")]
assert shown == unspool.__all__, set(shown) ^ set(unspool.__all__)
modules = [name for name in shown if isinstance(getattr(unspool, name), types.ModuleType)]
assert modules == ["functional"], modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_module_has_the_name_of_something_to_call():
    """`unspool.chat` must not be a module: a user would call it."""
    import unspool
    from unspool.cli.main import app

    commands = {command.name for command in app.registered_commands}
    modules = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    kinds = (unspool.LanguageModel, unspool.Engine, unspool.Generation)
    methods = {name for kind in kinds for name in dir(kind) if callable(getattr(kind, name))}
    verbs = {"display", "encode", "decode", "plan", "print", "run", "sample", "search", "show", "tokenize"}
    callables = {*methods, *unspool.functional.__all__, *commands, *verbs}
    assert {name for name in modules if not name.startswith("_")} & callables == set()


def test_the_version_is_the_projects():
    import unspool

    assert unspool.__version__ == PROJECT["version"] == importlib.metadata.version("unspool")


@pytest.mark.parametrize("module", ["unspool", "unspool.config", "unspool.cli.main"])
def test_an_import_stays_light(module: str):
    assert heavy_modules_after(f"import {module}") == []


@pytest.mark.parametrize(
    "arguments", [["--help"], ["generate", "--help"], ["next", "--help"], ["--version"]], ids=" ".join
)
def test_help_and_version_import_nothing_heavy(arguments: list[str]):
    code = f"from unspool.cli.main import main\nstatus = main({arguments!r})\nassert status == 0, status"
    assert heavy_modules_after(code) == []


def test_the_declared_dependencies_are_the_imported_ones():
    declared = {re.split(r"[<>=!~ \[]", line)[0].replace("-", "_") for line in PROJECT["dependencies"]}
    imported = imported_packages(PACKAGE) - set(sys.stdlib_module_names) - {"unspool"}
    optional = {
        "IPython",
        "accelerate",
        "fastapi",
        "gguf",
        "matplotlib",
        "prometheus_client",
        "pydantic",
        "starlette",
        "uvicorn",
    }
    assert imported - optional == declared


def test_constraints_pin_every_dependency_and_tool():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split("\n") if "==" in line)
    wanted = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["dev"]
    assert {re.split(r"[<>=!~ \[]", line)[0] for line in wanted} <= set(pinned)


def test_the_package_says_it_is_typed():
    assert (PACKAGE / "py.typed").exists()

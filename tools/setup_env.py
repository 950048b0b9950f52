"""Bring `.venv` to the state that pyproject.toml and constraints.txt describe, from any state.

    python3 tools/setup_env.py          (`make install` runs this)

Does nothing where the stamp in `.venv` matches and the environment still works. Installs over an environment that
somebody else made. Makes a new one where Python is gone, the folder has moved, an install was interrupted, or the
packages do not import. Standard library alone: it runs before anything is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import runpy
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
STAMP = VENV / ".unspool-installed"
UNFINISHED = VENV / ".unspool-installing"
KERNELS = ROOT / "src" / "unspool" / "kernels" / "build.py"
KERNELS_STAMP = VENV / ".unspool-kernels"
LOWEST = (3, 11)

# Run inside `.venv`. Finding packages takes milliseconds; importing them takes seconds.
USABLE = "import sys, pip; assert sys.version_info >= (3, 11) and sys.prefix != sys.base_prefix"
FOUND = "import sys; from importlib.util import find_spec; sys.exit(any(find_spec(n) is None for n in sys.argv[1:]))"
IMPORTS = "import torch, transformers, huggingface_hub, typer, rich, pytest, xdist, hypothesis, unspool"
PACKAGES = ("unspool", "torch", "transformers", "huggingface_hub", "typer", "rich")
TOOLS = ("pytest", "xdist", "hypothesis", "mypy", "ruff")


def say(text: str) -> None:
    print(f"[install] {text}", flush=True)


def wanted_stamp() -> str:
    """Return the stamp of an up-to-date environment; a moved folder or a changed file changes it."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        digest.update((ROOT / name).read_bytes())
    return f"{VENV}\n{digest.hexdigest()}\n"


def runs(code: str, *arguments: str) -> bool:
    """Return True if the code succeeds in the environment's Python."""
    try:
        done = subprocess.run([PYTHON, "-c", code, *arguments], capture_output=True, cwd=VENV)
    except OSError:
        return False
    return done.returncode == 0


def is_current() -> bool:
    try:
        stamp = STAMP.read_text()
    except OSError:
        return False
    return stamp == wanted_stamp() and not UNFINISHED.exists() and runs(USABLE) and runs(FOUND, *PACKAGES, *TOOLS)


def fault() -> str | None:
    """Return why packages cannot be installed into this environment, or None if they can."""
    if not VENV.exists():
        return "there is none"
    if UNFINISHED.exists():
        return "its installation was interrupted"
    if not runs(USABLE):
        return "its Python or its pip does not run, or is too old"
    if made_for() != VENV:
        return "it was not made for this folder, and its commands point elsewhere"
    return None


def made_for() -> Path | None:
    """Return the folder in which the environment was created; None if unknown."""
    for line in (VENV / "pyvenv.cfg").read_text().splitlines():
        key, _, command = line.partition(" = ")
        if key == "command" and " -m venv " in command:
            return Path(command.rpartition(" -m venv ")[2]).resolve()
    return None


def make_environment(why: str) -> None:
    """Replace the environment, if any, by a new and empty one."""
    if importlib.util.find_spec("ensurepip") is None:
        raise SystemExit(f"{sys.executable} cannot make environments: install its venv and ensurepip modules first")
    if VENV.is_symlink() or VENV.is_file():
        VENV.unlink()
    elif VENV.exists():
        shutil.rmtree(VENV)
    say(f"making a new .venv with Python {sys.version.split()[0]}: {why}")
    VENV.mkdir()
    UNFINISHED.touch()
    # With .venv activated, sys.executable has just been removed; the Python that made it has not.
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", VENV], check=True)


def pip_install(what: str, *arguments: str) -> None:
    """Run pip and show only errors; in a terminal a bar shows long downloads."""
    say(what)
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [PYTHON, "-m", "pip", "install", *quiet, "--constraint", "constraints.txt", *arguments]
    try:
        subprocess.run(command, check=True, cwd=ROOT)
    except subprocess.CalledProcessError:
        UNFINISHED.unlink()  # pip stopped in order, so the packages installed so far can be kept
        raise


def install() -> None:
    UNFINISHED.touch()
    STAMP.unlink(missing_ok=True)
    torch = next(line for line in (ROOT / "constraints.txt").read_text().split() if line.startswith("torch=="))
    pip_install(f"installing {torch}: the largest part, minutes on a slow line", torch)
    pip_install("installing unspool with its other packages and the development tools", "--editable", ".[dev]")


def build_kernels() -> None:
    """Build the kernels for changed sources or another compiler, and say in one line what was done."""
    tool = runpy.run_path(str(KERNELS))
    wanted = tool["source_digest"]() + str(tool["compiler_path"]())
    tried = KERNELS_STAMP.read_text() if KERNELS_STAMP.exists() else ""
    if not tool["is_current"]() and tried != wanted:
        say(tool["build_if_possible"]())
        KERNELS_STAMP.write_text(wanted)


def main() -> None:
    if sys.version_info < LOWEST:
        raise SystemExit(f"Unspool needs Python 3.11 or later; {sys.executable} is {sys.version.split()[0]}")
    if is_current():
        return build_kernels()
    begin = time.monotonic()
    why = fault()
    if why is not None:
        make_environment(why)
    build_kernels()
    install()
    if why is None and not runs(IMPORTS):
        make_environment("its packages do not import")
        install()
    # Unlike `runs`, this shows the error.
    subprocess.run([PYTHON, "-c", IMPORTS], check=True, cwd=VENV)
    STAMP.write_text(wanted_stamp())
    UNFINISHED.unlink()
    say(f"done in {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"[install] failed; the message is above. `make install` starts again. ({error})") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None

"""The peers' own environment: created if it is absent, and updated if the requirements have changed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.machine import vector_units

_HERE = Path(__file__).resolve().parent
_PEERS = _HERE / "requirements-peers.txt"
_LLAMA_CPP = _HERE / "requirements-llama-cpp.txt"


def peers_python(folder: Path, *, with_llama_cpp: bool, say: Callable[[str], None]) -> Path:
    """Return the interpreter of the peers' environment in that folder, after installing absent packages.

    Raises:
        SystemExit: if pip failed; the message has the remedy.
    """
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    try:
        if _stamp(folder, _PEERS) != _PEERS.read_text() or not python.exists():
            _make(folder, python, say)
        if with_llama_cpp and _stamp(folder, _LLAMA_CPP) != _LLAMA_CPP.read_text():
            say("compiling llama-cpp-python for this machine, which takes minutes")
            _pip(python, "--requirement", str(_LLAMA_CPP), **_llama_cpp_options(vector_units()))
            (folder / _LLAMA_CPP.name).write_text(_LLAMA_CPP.read_text())
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"the peers could not be installed into {folder}; the message is above ({error}). Go without them with "
            "`--peers none`, or name a Python that has them with `--peers-python PATH`"
        ) from None
    return python


def _make(folder: Path, python: Path, say: Callable[[str], None]) -> None:
    say(f"making the peers' environment in {folder}, which takes minutes the first time")
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    lines = [line for line in _PEERS.read_text().splitlines() if line and not line.startswith("#")]
    _pip(python, lines[0])
    _pip(python, "--requirement", str(_PEERS))
    (folder / _PEERS.name).write_text(_PEERS.read_text())


def _stamp(folder: Path, requirements: Path) -> str | None:
    """Return the requirements that the environment was last brought up to; None if never."""
    try:
        return (folder / requirements.name).read_text()
    except OSError:
        return None


def _llama_cpp_options(vector: str) -> dict[str, str]:
    """Return the environment variables of llama.cpp's build: none, unless the CPU has AMX.

    GCC 12 miscompiles the tile configuration of AMX, and the process ends in its first product with q8_0 weights. So
    the instruction sets below AMX are named one by one.
    """
    if "AMX" not in vector:
        return {}
    sets = ("AVX", "AVX2", "FMA", "F16C", "BMI2", "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16")
    return {"CMAKE_ARGS": " ".join(["-DGGML_NATIVE=OFF", *(f"-DGGML_{name}=ON" for name in sets)])}


def _pip(python: Path, *what: str, **variables: str) -> None:
    quiet = [] if sys.stdout.isatty() else ["--quiet"]
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", *quiet, *what]
    subprocess.run(command, check=True, env={**os.environ, **variables})

"""Builds the library of kernels if this machine has a C++ compiler.

    python -m unspool.kernels.build

Standard library alone: the build hook of the package runs this file before anything is installed. One source is
compiled once per instruction set, for any CPU; a CPU chooses its level when the library is loaded.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = FOLDER / "_kernels.so"
FACTS = FOLDER / "_kernels.json"
SOURCES = ("kernels.h", "vectors.h", "pieces.h", "amx.h", "attention.cpp", "linear.cpp", "rows.cpp", "library.cpp")

_X86 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = (*_X86, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512")
LEVELS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx2": _X86,
        "avx512": _AVX512,
        "avx512vnni": (*_AVX512, "-mavx512vnni"),
        "avx512bf16": (*_AVX512, "-mavx512vnni", "-mavx512bf16"),
        "amx": (*_AVX512, "-mavx512vnni", "-mamx-tile", "-mamx-bf16", "-mamx-int8"),
    },
    "aarch64": {"neon": ("-march=armv8.2-a+dotprod",)},
}
"""Instruction sets of each machine, and the compiler's flags for them."""

_FLAGS: tuple[str, ...] = (
    "-std=c++17",
    "-O3",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
)
_FLAGS += ("-ffp-contract=fast", "-fno-trapping-math", "-Wall", "-Wextra")


class BuildError(Exception):
    """The library cannot be built; the message says why."""


def source_digest() -> str:
    """Return a digest of the sources and of this file."""
    digest = hashlib.sha256()
    for name in (*SOURCES, "build.py"):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()


def is_current() -> bool:
    """Return whether the library exists and was built from these sources."""
    try:
        facts = json.loads(FACTS.read_text())
    except (OSError, ValueError):
        return False
    return LIBRARY.exists() and facts.get("source") == source_digest() and facts.get("machine") == machine()


def compiler_path() -> str | None:
    """Return the path of a C++ compiler: `$CXX`, or c++, g++ or clang++ of the path; None if none is found."""
    names = [os.environ["CXX"]] if os.environ.get("CXX") else ["c++", "g++", "clang++"]
    return next(filter(None, map(shutil.which, names)), None)


def build() -> None:
    """Compile the library into this folder.

    Raises:
        BuildError: if the compiler is missing or fails, or if this kind of machine lacks kernels.
    """
    kind = machine()
    if kind not in LEVELS or sys.platform not in ("linux", "darwin"):
        raise BuildError(f"kernels do not exist for {platform.system()} on {platform.machine()}")
    compiler = compiler_path()
    if compiler is None:
        raise BuildError("no C++ compiler was found")
    with tempfile.TemporaryDirectory() as folder:
        parts = [("library.cpp", "library", ()), *_parts(kind)]
        objects = [str(Path(folder, f"{number}.o")) for number in range(len(parts))]

        def compile_part(number: int) -> None:
            source, name, flags = parts[number]
            options = [*_FLAGS, *flags, f"-DNAME={name}"]
            _run([compiler, *options, "-c", str(FOLDER / source), "-o", objects[number]])

        with ThreadPoolExecutor() as pool:
            list(pool.map(compile_part, range(len(parts))))
        made = Path(folder, LIBRARY.name)
        _run([compiler, "-shared", "-o", str(made), *objects])
        content = made.read_bytes()
    facts = {"library": hashlib.sha256(content).hexdigest(), "source": source_digest(), "machine": kind}
    # The old facts go first, so that they never describe a new library. Files are replaced: a process can use them.
    FACTS.unlink(missing_ok=True)
    for path, data in ((LIBRARY, content), (FACTS, json.dumps(facts).encode())):
        part = path.with_suffix(".part")
        part.write_bytes(data)
        part.replace(path)


def _parts(kind: str) -> list[tuple[str, str, tuple[str, ...]]]:
    """Return the sources of each level of a machine, with the level's name and flags."""
    sources = {"linear.cpp": (), "attention.cpp": (), "rows.cpp": ("-ffp-contract=off",)}
    return [(source, level, (*flags, *own)) for level, flags in LEVELS[kind].items() for source, own in sources.items()]


def build_if_possible() -> str:
    """Build the library unless it is current, and describe the result in one line. A failure raises nothing."""
    if is_current():
        return "the kernels are up to date"
    begin = time.monotonic()
    try:
        build()
    except BuildError as error:
        return f"built without kernels, models run on PyTorch's operators alone: {error}"
    return f"built the kernels in {time.monotonic() - begin:.0f} s"


def machine() -> str:
    """Return the kind of this machine; a key of `LEVELS` if kernels for it exist."""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as failure:
        raise BuildError(f"{command[0]} does not start: {failure}") from failure
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        message = next((line for line in lines if "error" in line), lines[-1])
        raise BuildError(f"{Path(command[0]).name} failed: {message}")


if __name__ == "__main__":
    print(build_if_possible())

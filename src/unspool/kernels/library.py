"""The library of kernels: loads the library if it was built from this version and runs on this machine.

Owns the checks before the first call. Does not know weights or layers (packed.py). It uses neither
Python nor PyTorch, so that one file serves all their versions. It runs on the threads of PyTorch's own OpenMP pool.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import torch

from unspool.errors import OptionError
from unspool.kernels.build import FACTS, LEVELS, LIBRARY, source_digest

VARIABLE: Final = "UNSPOOL_KERNELS"
"""Environment variable: "auto", "off", or the name of an instruction set."""

INPUT_TYPES: Final = {torch.float32: 0, torch.bfloat16: 1}
"""Types of the inputs and results of a call, as the library counts them: `Type` in kernels.h."""

_OPTIONS: Final = ("auto", "off", *(level for machine in LEVELS.values() for level in machine))
_OPENMP: Final = ("GOMP_parallel", "__kmpc_fork_call", "__kmpc_push_num_threads", "__kmpc_global_thread_num")


class Kernels(NamedTuple):
    """The loaded library.

    Attributes:
        level: the instruction set, such as "avx512bf16".
        version: a digest of the sources.
    """

    functions: ctypes.CDLL
    level: str
    version: str


def kernels() -> Kernels | None:
    """Return the library, or None if it cannot be used here; `obstacle` says why."""
    found = _load(choice())
    return found if isinstance(found, Kernels) else None


def obstacle() -> str:
    """Return why the kernels cannot be used here; "" if they can."""
    found = _load(choice())
    return found if isinstance(found, str) else ""


def choice() -> str:
    """Return the value of `UNSPOOL_KERNELS`.

    Raises:
        OptionError: if the value is not allowed.
    """
    value = os.environ.get(VARIABLE, "auto")
    if value not in _OPTIONS:
        raise OptionError(VARIABLE, value, f"must be one of {', '.join(_OPTIONS)}", "unset it to choose by CPU")
    return value


@lru_cache(maxsize=1)
def _load(wanted: str) -> Kernels | str:
    """Return the library, or why it cannot be used. A damaged library also causes a warning.

    One result is kept, because the library has one level at a time.
    """
    if wanted == "off":
        return f"{VARIABLE}=off"
    if not LIBRARY.exists():
        return "the kernels were not built"
    try:
        facts = json.loads(FACTS.read_text())
        version = source_digest()
        if facts["source"] != version:
            return "the kernels are of another version: run `python -m unspool.kernels.build`"
        return _opened(facts["library"], version, "" if wanted == "auto" else wanted)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = f"the kernels cannot be used: {error}"
        warnings.warn(f"{reason}; models run on PyTorch's operators", RuntimeWarning, stacklevel=4)
        return reason


def _opened(digest: str, version: str, level: str) -> Kernels | str:
    # The digest comes first: a truncated library can end the process when it is opened.
    if hashlib.sha256(LIBRARY.read_bytes()).hexdigest() != digest:
        raise ValueError(f"{LIBRARY.name} is damaged")
    functions = ctypes.CDLL(str(LIBRARY))
    functions.unspool_choose.restype = ctypes.c_char_p
    functions.unspool_bytes.restype = ctypes.c_int64
    functions.unspool_bytes.argtypes = [ctypes.c_void_p]
    functions.unspool_pack.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32]
    functions.unspool_rows.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int32]
    functions.unspool_linear.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int32, ctypes.c_int32]
    functions.unspool_set_streams.argtypes = [ctypes.c_int32]
    functions.unspool_set_streams.restype = None
    functions.unspool_read.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32]
    functions.unspool_mask.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 4 + [ctypes.c_int32]
    functions.unspool_mask.restype = None
    functions.unspool_attend.argtypes = [ctypes.c_void_p] * 7 + [ctypes.c_int32]
    functions.unspool_gather.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64] * 3
    functions.unspool_sum.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int32]
    functions.unspool_norm.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int32]
    functions.unspool_layer_norm.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64, ctypes.c_int32]
    functions.unspool_gate.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64, ctypes.c_int32]
    functions.unspool_rotate.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_int32]
    functions.unspool_top_k.argtypes = [ctypes.c_void_p] * 4 + [ctypes.c_int64] * 4 + [ctypes.c_int32]
    functions.unspool_top_k.restype = None
    for function in ("norm", "layer_norm", "rotate", "gate", "sum"):
        getattr(functions, f"unspool_{function}").restype = None
    functions.unspool_record.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    functions.unspool_record.restype = functions.unspool_command_bytes.restype = ctypes.c_int64
    functions.unspool_run.argtypes = [ctypes.c_void_p, ctypes.c_int64, *[ctypes.c_void_p] * 2, ctypes.c_int32]
    functions.unspool_set_threads.argtypes = [ctypes.c_void_p] * 4
    functions.unspool_set_threads(*_openmp())
    found = functions.unspool_choose(level.encode())
    if found is None:
        return f"this CPU lacks {level}" if level else "this CPU lacks the instruction sets of the kernels"
    return Kernels(functions, found.decode(), version[:12])


def _openmp() -> tuple[int | None, ...]:
    """Return the addresses of the entry points of PyTorch's OpenMP runtime, GNU's or LLVM's.

    Raises:
        AttributeError: if PyTorch lacks such a runtime.
    """
    folder = Path(torch.__file__).parent / "lib"
    library = next(filter(Path.exists, (folder / "libtorch_cpu.so", folder / "libtorch_cpu.dylib")), None)
    if library is None:
        raise AttributeError(f"{folder} lacks libtorch_cpu")
    # A symbol is searched in this library and in its dependencies, so that no second runtime is found.
    handle = ctypes.CDLL(str(library))
    gnu, *llvm = (_address(handle, name) for name in _OPENMP)
    if gnu is None and None in llvm:
        raise AttributeError("PyTorch's OpenMP runtime lacks the known entry points")
    return gnu, *llvm


def _address(handle: ctypes.CDLL, name: str) -> int | None:
    try:
        return ctypes.cast(getattr(handle, name), ctypes.c_void_p).value
    except AttributeError:
        return None

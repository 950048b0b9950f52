"""Loading the library: a choice, a damaged file, another version, a PyTorch without a known OpenMP runtime."""

import ctypes
import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.kernels.levels import num_streams
from unspool.errors import OptionError
from unspool.kernels import library
from unspool.kernels.library import FACTS, LIBRARY, VARIABLE, kernels, obstacle
from unspool.kernels.packed import STREAMS, set_streams

needs_kernels = pytest.mark.skipif(kernels() is None, reason=f"no kernels here: {obstacle()}")


@pytest.fixture
def copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Let `kernels` read a copy of the library, and nothing that was loaded before."""
    for name, path in (("LIBRARY", LIBRARY), ("FACTS", FACTS)):
        shutil.copy(path, tmp_path)
        monkeypatch.setattr(library, name, tmp_path / path.name)
    library._load.cache_clear()
    yield tmp_path / LIBRARY.name
    library._load.cache_clear()


def test_the_kernels_can_be_turned_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "off")
    assert kernels() is None and obstacle() == f"{VARIABLE}=off"


def test_an_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv(VARIABLE, "sse9")
    with pytest.raises(OptionError, match=r"`UNSPOOL_KERNELS` must be one of auto, off, .*, got 'sse9'"):
        kernels()


def test_a_missing_library_is_no_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(library, "LIBRARY", tmp_path / "missing.so")
    library._load.cache_clear()
    assert kernels() is None and obstacle() == "the kernels were not built"
    library._load.cache_clear()


@needs_kernels
def test_a_truncated_library_is_not_opened(copy):
    """Opening such a file can end the process by a signal."""
    copy.write_bytes(copy.read_bytes()[: copy.stat().st_size // 2])
    with pytest.warns(RuntimeWarning, match=r"_kernels\.so is damaged; models run on PyTorch's operators"):
        assert kernels() is None
    assert "damaged" in obstacle()


@needs_kernels
def test_a_file_of_another_kind_of_cpu_is_a_warning(copy):
    """The system refuses to open such a file; a text stands for it."""
    copy.write_bytes(b"no library")
    facts = json.loads(library.FACTS.read_text())
    digest = hashlib.sha256(b"no library").hexdigest()
    library.FACTS.write_text(json.dumps({**facts, "library": digest}))
    with pytest.warns(RuntimeWarning, match="the kernels cannot be used"):
        assert kernels() is None


@needs_kernels
def test_a_library_of_other_sources_is_not_opened(copy, monkeypatch):
    facts = json.loads(library.FACTS.read_text())
    library.FACTS.write_text(json.dumps({**facts, "source": "other"}))
    assert kernels() is None
    assert obstacle() == "the kernels are of another version: run `python -m unspool.kernels.build`"


@needs_kernels
def test_a_pytorch_without_a_known_openmp_runtime_is_a_warning(copy, monkeypatch):
    monkeypatch.setattr(library, "_OPENMP", ("a", "b", "c", "d"))
    with pytest.warns(RuntimeWarning, match="OpenMP runtime lacks the known entry points"):
        assert kernels() is None


@needs_kernels
def test_the_library_brings_no_openmp_runtime_of_its_own():
    """A process has one pool of threads: loading and using the library opens no further OpenMP runtime."""
    code = """
import torch
from unspool.kernels.packed import PackedWeight, linear
def runtimes():
    lines = open("/proc/self/maps").read().splitlines()
    return {line.split()[-1] for line in lines if "omp" in line.rsplit("/", 1)[-1] and ".so" in line}
before = runtimes()
linear(torch.ones(2, 64), PackedWeight(torch.ones(64, 64)))
assert before and runtimes() == before, (before, runtimes())
"""
    if not Path("/proc/self/maps").exists():
        pytest.skip("this system does not list the libraries of a process")
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@needs_kernels
@pytest.mark.parametrize("streams", STREAMS)
def test_reading_touches_all_memory_and_returns(streams: int):
    data = torch.ones(1 << 17)
    functions = kernels().functions
    assert isinstance(functions, ctypes.CDLL)
    with num_streams(streams):
        functions.unspool_read(data.data_ptr(), data.numel(), 2)


@needs_kernels
def test_a_number_of_streams_must_be_known():
    with pytest.raises(ValueError, match=r"streams must be one of \(0, 1, 4\), got 3"):
        set_streams(3)

"""Rules for every test: offline, one thread, long drills sampled, absent parts skipped with the reason."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Read by torch, tokenizers and huggingface_hub when they are first imported. The models are too small for more threads,
# and the test processes would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# No test depends on the speed of this CPU, or on times that another program has kept.
os.environ["UNSPOOL_AUTOTUNE"] = "0"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import hypothesis
import pytest

from tests.sampling import ALL, run_all
from unspool.machine.threads import usable_cpus

# Each process needs about a gigabyte.
MOST_WORKERS = 16

EMBEDDED = Path(__file__).resolve().parent.parent / "src" / "unspool" / "tale"

hypothesis.settings.register_profile("sampled", derandomize=True, deadline=None, database=None, max_examples=50)
hypothesis.settings.register_profile("all", deadline=None, database=None, max_examples=500, print_blob=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the long drills whole, and the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--all"):
        os.environ[ALL] = "1"
    hypothesis.settings.load_profile("all" if run_all() else "sampled")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Return the number of processes for `-n auto`: one per CPU that this process can use."""
    return min(MOST_WORKERS, usable_cpus())


def pytest_report_header() -> str:
    return "drills: whole" if run_all() else "drills: sampled with a fixed seed; make test-all runs them whole"


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    reasons = {}
    if not run_all():
        reasons["slow"] = "a long drill: make test-all runs it"
    if not any(EMBEDDED.rglob("*.safetensors")):
        reasons["model"] = "the weights of the embedded model are absent: tools/train_tale.py makes them"
    if any(item.get_closest_marker("gpu") for item in items) and not _has_cuda():
        reasons["gpu"] = "no CUDA device"
    for item in items:
        for marker, reason in reasons.items():
            if item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections leave this machine in no test; a server of our own on the loopback address is fine."""
    connect = socket.socket.connect

    def connect_locally(self: socket.socket, address: Any) -> None:
        if self.family != getattr(socket, "AF_UNIX", None) and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise RuntimeError(f"a test tried to connect to {address}")
        connect(self, address)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", connect_locally)
        yield


@pytest.fixture
def unforced_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear layers have their default form: plain, unless the test replaces the trial."""
    monkeypatch.delenv("UNSPOOL_LINEAR", raising=False)


@pytest.fixture
def packed_layers(unforced_layers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that this test prepares have packed linear layers, whatever is fastest on this CPU."""
    from unspool.kernels.library import kernels, obstacle

    if kernels() is None:
        pytest.skip(f"linear layers cannot be packed: {obstacle()}")
    monkeypatch.setenv("UNSPOOL_LINEAR", "native")


@pytest.fixture
def plain_layers(unforced_layers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Models that this test prepares have plain linear layers."""
    monkeypatch.setenv("UNSPOOL_LINEAR", "plain")

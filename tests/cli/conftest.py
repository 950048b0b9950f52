"""The command line with a fake model, run inside the test's process."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

import unspool
from tests.cli.fakes import DRAWN, FakeModel
from unspool.cli.main import main


@dataclass(frozen=True, slots=True)
class Done:
    """What a command line left behind."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run the command line with these arguments, the text as what is piped in."""

    def call(*arguments: str, piped: str | bytes = "") -> Done:
        raw = piped.encode() if isinstance(piped, str) else piped
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(raw)))
        capsys.readouterr()
        status = main(arguments)
        captured = capsys.readouterr()
        return Done(status, captured.out, captured.err)

    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("unspool.cli.endings.fresh_seed", lambda: DRAWN)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    return call


@pytest.fixture(scope="package")
def tale() -> unspool.LanguageModel:
    """The embedded model."""
    return unspool.load()


@pytest.fixture
def loads_tale(monkeypatch: pytest.MonkeyPatch, tale: unspool.LanguageModel) -> None:
    """Let the commands load the embedded model once for all tests."""
    monkeypatch.setattr("unspool.cli.sources.load_model", lambda name, **how: tale)


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[FakeModel], FakeModel]]:
    """Let the commands load this model; it gets `loaded`, what they asked load_model for."""

    def call(model: FakeModel) -> FakeModel:
        def load_model(name: str | None, **how: Any) -> FakeModel:
            model.loaded = (name, how)
            return model

        monkeypatch.setattr("unspool.cli.sources.load_model", load_model)
        return model

    yield call

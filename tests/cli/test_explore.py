"""`unspool explore` and the explorer of `unspool serve`: models, addresses, the browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import unspool
from unspool.runtimes.toy import ToyRuntime

Run = Callable[..., Any]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Let commands serve nothing. Returns what they loaded, the paths of the application, and the opened address."""
    found: dict[str, Any] = {"loaded": [], "opened": None}

    def load(name: str | None, **how: Any) -> unspool.LanguageModel:
        found["loaded"].append(name)
        return unspool.LanguageModel(ToyRuntime(lambda tokens: [1.0, 1.0], 2))

    def serve(app: Any, sockets: Any, ready: Callable[[int], None]) -> None:
        found["paths"] = {getattr(route, "path", "") for route in app.routes}
        ready(8123)

    def browse(address: str) -> bool:
        found["opened"] = address
        return True

    monkeypatch.setattr("unspool.cli.sources.load_model", load)
    monkeypatch.setattr("unspool.serving.run.serve", serve)
    monkeypatch.setattr("webbrowser.open", browse)
    return found


def test_explore_opens_the_embedded_model_with_its_draft(run: Run, served: dict[str, Any]):
    done = run("explore", "--port", "0")
    assert done.status == 0
    assert served["loaded"] == [None, "tale-draft"]
    assert served["opened"] == "http://127.0.0.1:8123/"
    assert "Explorer at http://127.0.0.1:8123/" in done.err
    assert {"/", "/explore/next", "/v1/completions"} <= served["paths"]


def test_explore_takes_a_model_and_needs_no_browser(run: Run, served: dict[str, Any]):
    assert run("explore", "some-model", "--no-browser", "--port", "0", "--assistant-model", "small").status == 0
    assert served["loaded"] == ["some-model", "small"]
    assert served["opened"] is None


def test_a_model_given_twice_is_refused(run: Run, served: dict[str, Any]):
    done = run("explore", "one", "--model", "two")
    assert done.status == 2 and "given twice" in done.err
    assert not served["loaded"]


def test_explore_refuses_the_flag_that_leaves_the_page_out(run: Run, served: dict[str, Any]):
    done = run("explore", "--no-explore")
    assert done.status == 2 and "--no-explore" in done.err and "unspool serve" in done.err
    assert not served["loaded"]


def test_serve_has_the_explorer_unless_it_is_left_out(run: Run, served: dict[str, Any]):
    done = run("serve", "--port", "0")
    assert "Explorer at http://127.0.0.1:8123/" in done.err and "/" in served["paths"]
    done = run("serve", "--no-explore", "--port", "0")
    assert "Explorer" not in done.err and "/" not in served["paths"]

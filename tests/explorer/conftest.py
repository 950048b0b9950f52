"""A server with the explorer, and a real browser. Browser tests are skipped where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import pytest

import unspool
from tests.serving.conftest import serving
from unspool.explorer import add_explorer

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000
"""Milliseconds that a browser waits on a busy machine."""


@pytest.fixture(scope="session")
def lm() -> unspool.LanguageModel:
    return unspool.load()


@pytest.fixture(scope="session")
def address(lm: unspool.LanguageModel) -> Iterator[str]:
    """The address of a server of the embedded model with the explorer and a draft model."""
    with serving(lm, assistants={"tale-draft": unspool.load("tale-draft")}, extend=add_explorer) as (found, _):
        yield found


@pytest.fixture(scope="module")  # Playwright's event loop runs until the end, and tests of other modules need their own
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("chromium is not installed (apt-get install chromium), so the page is not tested in a browser")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


Open = Callable[..., Any]


@contextmanager
def opened(browser: Any, **how: Any) -> Iterator[Callable[[str], Any]]:
    """Yield a function that opens an address. At the end: no error in the console, no request to another host."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **how})
    context.set_default_timeout(PATIENCE)
    faults: list[str] = []
    hosts: set[str] = set()

    def in_words(said: Any) -> str:
        return f"{said.text} ({said.location['url']})"

    def go(address: str) -> Any:
        page = context.new_page()
        page.on("console", lambda said: faults.append(in_words(said)) if said.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: hosts.add(request.url.split("/")[2] if "//" in request.url else "data"))
        page.goto(address)
        page.wait_for_selector("main")
        allowed.add(address.split("/")[2])
        return page

    allowed: set[str] = set()
    try:
        yield go
        assert not faults, faults
        assert hosts <= allowed, hosts - allowed
    finally:
        context.close()


@pytest.fixture
def visit(browser: Any, address: str) -> Iterator[Open]:
    """Open a view of the shared server: `visit("beams", prompt=..., run=True)`."""
    with opened(browser) as go:
        yield lambda view, **state: go(f"{address}/{link(view, **state)}")


def link(view: str, **state: Any) -> str:
    """Return the part of a URL that restores a view."""
    return f"#{view}={quote(json.dumps(state))}" if state else f"#{view}"


def numbers(page: Any, selector: str, name: str) -> list[float]:
    """Return the numbers of an attribute of all elements, in order."""
    found = page.eval_on_selector_all(selector, f"all => all.map(each => each.getAttribute('{name}'))")
    return [float(each) for each in found if each is not None]

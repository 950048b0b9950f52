"""Pictures of every view in light, dark and phone width. `make pictures` writes those that the documentation shows.

Each picture is checked for its size in the file and for a view that fits the width; somebody has to look at the rest.
"""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import unspool
from tests.explorer.conftest import link, opened
from tests.explorer.test_page import PROMPT, VIEWS, ready

FOLDER = "UNSPOOL_PICTURES"
"""Environment variable: the folder of the pictures; without it, they go to a temporary folder."""

LOOKS: dict[str, dict[str, Any]] = {
    "": {"viewport": {"width": 1120, "height": 720}},
    "-dark": {"viewport": {"width": 1120, "height": 720}, "color_scheme": "dark"},
    "-phone": {"viewport": {"width": 390, "height": 760}, "has_touch": True, "is_mobile": True},
}
STATES: dict[str, dict[str, Any]] = {
    **VIEWS,
    "next": {"prompt": "The king", "next": {"temperature": 0.8, "top_k": 12, "top_p": 0.8}},
    "generate": {
        "prompt": PROMPT,
        "strategy": "sample",
        "options": {"temperature": 0.9, "top_p": 0.8, "max_new_tokens": 60},
        "run": True,
        "pick": 4,
    },
    "compare": {"prompt": PROMPT, "tokens": 25, "run": True},
}
SHOWN = {*VIEWS, "trace_file", "beams-dark", "next-phone"}
"""Pictures of the documentation."""

LARGEST = 120_000
"""Bytes of a picture."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(os.environ.get(FOLDER, tmp_path))


def taken(page: Any, folder: Path, tmp_path: Path, name: str) -> None:
    """Write a picture, and check that nothing is wider than the window."""
    page.wait_for_timeout(400)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    picture = Image.open(BytesIO(page.screenshot(animations="disabled", caret="hide")))
    file = folder / f"{name}.png" if FOLDER not in os.environ or name in SHOWN else tmp_path / f"{name}.png"
    picture.convert("RGB").quantize(256).save(file, optimize=True)
    assert 5_000 < file.stat().st_size <= LARGEST


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("view", VIEWS)
def test_a_picture_of_a_view(browser: Any, address: str, folder: Path, tmp_path: Path, view: str, look: str):
    with opened(browser, **LOOKS[look]) as go:
        page = go(f"{address}/{link(view, seed=3, **STATES[view])}")
        ready(page, view)
        if look == "-phone":
            page.evaluate("document.querySelector('.main').scrollIntoView()")
        taken(page, folder, tmp_path, f"{view}{look}")


@pytest.mark.parametrize("look", LOOKS)
def test_a_picture_of_a_trace_as_a_file(
    browser: Any, lm: unspool.LanguageModel, folder: Path, tmp_path: Path, look: str
):
    trace = lm.generate(PROMPT, num_beams=4, num_return_sequences=2, max_new_tokens=12, seed=3, trace=True).trace
    assert trace is not None
    trace.to_html(tmp_path / "trace.html")
    context = browser.new_context(**LOOKS[look])
    page = context.new_page()
    page.goto((tmp_path / "trace.html").as_uri())
    page.wait_for_selector("main")
    taken(page, folder, tmp_path, f"trace_file{look}")
    context.close()

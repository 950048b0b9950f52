"""The benchmark of the explorer's frames: its figures, and one run in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import unspool
from benchmarks.scrubbing import WAYS, Scrub, browser, figures, main, scrub


def test_figures_are_of_all_runs():
    runs = [Scrub([16.7] * 18, 5.0, 9.0), Scrub([33.4, 50.1], 7.0, 11.0)]
    assert figures(runs) == ["16.7 ms", "33.4 ms", "5%", "6.0 ms", "10.0 ms"], "33.4 ms are two frames at 60 Hz"


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["absent.html"])
    assert "absent.html" in capsys.readouterr().err


def test_each_step_is_shown_once(tmp_path: Path):
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed (apt-get install chromium)")
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    trace = unspool.load().generate("Once upon a time", num_beams=3, max_new_tokens=6, trace=True).trace
    assert trace is not None
    trace.to_html(tmp_path / "trace.html")
    with browser() as started:
        for way in WAYS:
            found = scrub(started, tmp_path / "trace.html", way)
            assert 0 < len(found.intervals) <= len(trace.steps), "frames can skip steps, but show none twice"
            assert found.main_thread > 0 and found.processes > found.main_thread

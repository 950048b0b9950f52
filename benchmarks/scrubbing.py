"""Frames of the web explorer while a trace of 2,000 nodes is scrubbed, step by step, by mouse and by keyboard.

    python -m benchmarks.scrubbing                     # two minutes on two idle cores; needs Chromium
    python -m benchmarks.scrubbing old.html new.html   # files of `trace.to_html()`, which take turns

Prints, per file and way, the time between two frames that show another step: median, 95th percentile, and the share
above 33 ms (30 frames per second). The CPU time per step does not depend on other programs as much: that of the page's
main thread, and of all of Chromium's processes.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch

import unspool
from benchmarks.machine import cpu_name, num_cores

TRACES: Final[dict[str, dict[str, Any]]] = {
    "beams": {"num_beams": 8, "max_new_tokens": 260, "min_new_tokens": 260},
    "samples": {"do_sample": True, "num_return_sequences": 8, "max_new_tokens": 250, "min_new_tokens": 250},
}
"""Options of calls whose traces have about 2,000 nodes: most given up early, and all in outputs."""
WAYS: Final = ("mouse", "keyboard")
FRAME_MS: Final = 1000 / 30
_FLAGS: Final = ("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking")
_WATCH: Final = """() => {
    const shown = document.querySelector(".player output");
    window.changes = [];
    let last = shown.textContent;
    const look = (time) => {
        if (shown.textContent !== last) window.changes.push(time);
        last = shown.textContent;
        requestAnimationFrame(look);
    };
    requestAnimationFrame(look);
}"""


class Scrub(NamedTuple):
    """One run over all steps: milliseconds between new frames; CPU milliseconds per step of the main thread, of all."""

    intervals: list[float]
    main_thread: float
    processes: float


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scrubbing",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="*", type=Path, help="HTML files of traces (default: two new traces)")
    parser.add_argument("--rounds", type=int, default=3, help="runs per file and way (default: 3)")
    options = parser.parse_args(arguments)
    missing = [str(file) for file in options.files if not file.is_file()]
    if missing:
        parser.error(f"no such file: {', '.join(missing)}")
    with tempfile.TemporaryDirectory() as folder, browser() as started:
        files = options.files or list(write_traces(Path(folder)))
        print(f"{cpu_name()}, {num_cores()} cores, Chromium {started.version}, {options.rounds} rounds\n")
        print(
            "| File | Way | Median | p95 | Above 33 ms | Main thread | All processes |\n|---|---|---|---|---|---|---|"
        )
        runs: dict[tuple[Path, str], list[Scrub]] = {(file, way): [] for way in WAYS for file in files}
        for _ in range(options.rounds):
            for (file, way), found in runs.items():
                found.append(scrub(started, file, way))
    for (file, way), found in runs.items():
        print(f"| {file.stem} | {way} | {' | '.join(figures(found))} |")


def write_traces(folder: Path) -> Iterator[Path]:
    """Yield the files of new traces of the embedded model."""
    lm = unspool.load()
    torch.set_num_threads(1)  # the model is tiny: more threads only wait for each other
    for name, options in TRACES.items():
        print(f"writing the trace {name} …", file=sys.stderr)
        trace = lm.generate("Once upon a time", seed=3, trace=True, **options).trace
        assert trace is not None, "a trace was asked for"
        file = folder / f"{name}.html"
        trace.to_html(file)
        yield file


@contextmanager
def browser() -> Iterator[Any]:
    """Yield a running Chromium without a window."""
    chromium = shutil.which("chromium")
    if chromium is None:
        sys.exit("Chromium is missing: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("Playwright is missing: pip install playwright (or `make install`)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=list(_FLAGS))
        yield started
        started.close()


def scrub(started: Any, file: Path, way: str) -> Scrub:
    """Scrub from the first step to the last. Each input waits until the page has handled the one before."""
    page = started.new_page(viewport={"width": 1280, "height": 900})
    page.goto(file.resolve().as_uri())
    slider = page.locator(".player input")
    steps = int(slider.get_attribute("max"))
    slider.scroll_into_view_if_needed()
    slider.press("Home")
    page.wait_for_timeout(500)
    session, whole = page.context.new_cdp_session(page), started.new_browser_cdp_session()
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    page.evaluate(_WATCH)
    thread, processes = _main_thread(session), _processes(whole)
    if way == "mouse":
        _drag(page, slider.bounding_box(), steps)
    else:
        for _ in range(steps):
            page.keyboard.press("ArrowRight")
    page.wait_for_timeout(300)
    thread, processes = _main_thread(session) - thread, _processes(whole) - processes
    changes = page.evaluate("window.changes")
    page.close()
    intervals = [after - before for before, after in zip(changes, changes[1:], strict=False)]
    return Scrub(intervals, thread * 1e3 / steps, processes * 1e3 / steps)


def figures(runs: Sequence[Scrub]) -> list[str]:
    """Return the cells of a row of the table."""
    intervals = sorted(each for run in runs for each in run.intervals)
    late = sum(each > FRAME_MS + 1 for each in intervals) / len(intervals)  # frames come each 16.7 ms, or 33.4
    return [
        f"{statistics.median(intervals):.1f} ms",
        f"{intervals[int(0.95 * (len(intervals) - 1))]:.1f} ms",
        f"{late:.0%}",
        f"{statistics.median(run.main_thread for run in runs):.1f} ms",
        f"{statistics.median(run.processes for run in runs):.1f} ms",
    ]


def _drag(page: Any, box: dict[str, float], steps: int) -> None:
    """Drag the handle of the slider over its whole width, one step at a time."""
    margin = box["height"] / 2
    left, width, middle = box["x"] + margin, box["width"] - 2 * margin, box["y"] + margin
    page.mouse.move(left, middle)
    page.mouse.down()
    for step in range(steps + 1):
        page.mouse.move(left + width * step / steps, middle)
    page.mouse.up()


def _main_thread(session: Any) -> float:
    """Return the CPU seconds of the tasks on the page's main thread so far."""
    found = session.send("Performance.getMetrics")["metrics"]
    return next(float(each["value"]) for each in found if each["name"] == "TaskDuration")


def _processes(session: Any) -> float:
    """Return the CPU seconds of all of Chromium's processes so far."""
    return sum(float(each["cpuTime"]) for each in session.send("SystemInfo.getProcessInfo")["processInfo"])


if __name__ == "__main__":
    main()

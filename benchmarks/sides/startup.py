"""A new Python that runs a line and ends: what a user waits for before anything is written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.sides.side import Run
from benchmarks.work import Work


class Startup:
    """Options of the work: `code`, what the new Python runs."""

    def __init__(self, threads: int) -> None:
        pass

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        return "a process of its own each time"

    def run(self, work: Work) -> Run:
        subprocess.run([sys.executable, "-c", work.options["code"]], check=True)
        return Run()

    def versions(self) -> Mapping[str, str]:
        return {"python": sys.version.split()[0]}


make = Startup

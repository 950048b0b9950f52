"""A new Python process that runs a line: the time before the first output."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.sides.side import Run
from benchmarks.work import Work


class Startup:
    """Options of the work: `code`, a line that the new Python runs. The time ends with the line: then it is killed.

    Python's exit takes about a second with PyTorch loaded; a user does not wait for it.
    """

    def __init__(self, threads: int) -> None:
        pass

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        return "a process of its own each time"

    def run(self, work: Work) -> Run:
        reader, writer = os.pipe()
        code = f"{work.options['code']}\nimport os, sys; sys.stdout.flush(); os.write({writer}, b'.')"
        process = subprocess.Popen([sys.executable, "-c", code], pass_fds=(writer,))
        os.close(writer)
        with open(reader, "rb") as told:
            is_done = bool(told.read(1))
        process.kill()
        status = process.wait()
        if not is_done:
            raise subprocess.CalledProcessError(status, process.args)
        return Run()

    def versions(self) -> Mapping[str, str]:
        return {"python": sys.version.split()[0]}


make = Startup

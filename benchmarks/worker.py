"""A process that is one side: it loads one checkpoint and does pieces of work, one JSON line in, one out.

    python -m benchmarks.worker SIDE THREADS

    {"do": "load", "checkpoint": folder, "options": {...}}
        -> {"info": words, "versions": {...}, "seconds": s, "memory": bytes}
    {"do": "run", "work": {...}, "before": {...} or null}
        -> {"seconds": s, "first_seconds": s or null, "token_ids": [...], "passes": n or null, "parts": {...},
            "peak": bytes}

or {"unavailable": why}, or {"error": what went wrong}. `before` is work that is done first and not timed. Between
lines the process sleeps; the end of its input ends it. The output of libraries goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TextIO

from benchmarks.memory import forget_peak, peak_bytes, resident_bytes
from benchmarks.sides.side import Side, Unavailable, side_of
from benchmarks.work import Work


class Worker:
    """Answers requests for one side."""

    def __init__(self, name: str, threads: int) -> None:
        self._name, self._threads = name, threads
        self._side: Side | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer to one request, whatever happens."""
        try:
            if request["do"] == "load":
                return self._load(Path(request["checkpoint"]), request["options"])
            if request.get("before"):
                self._run(Work.from_dict(request["before"]))
            return self._run(Work.from_dict(request["work"]))
        except Unavailable as error:
            return {"unavailable": str(error)}
        except Exception as error:
            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"}

    def _load(self, checkpoint: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        self._side = side_of(self._name, self._threads)
        started = time.perf_counter()
        info = self._side.load(checkpoint, options)
        seconds = time.perf_counter() - started
        return {"info": info, "versions": self._side.versions(), "seconds": seconds, "memory": resident_bytes()}

    def _run(self, work: Work) -> dict[str, Any]:
        assert self._side is not None, "nothing is loaded"
        forget_peak()
        started = time.perf_counter()
        run = self._side.run(work)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "peak": peak_bytes(), **asdict(run)}


def serve(worker: Worker, requests: TextIO, answers: TextIO) -> None:
    """Answer each line of the input until its end."""
    for line in requests:
        answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
        answers.flush()


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(Worker(sys.argv[1], int(sys.argv[2])), sys.stdin, answers)


if __name__ == "__main__":
    main()

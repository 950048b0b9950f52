"""The worker processes: started on first use, idle while another worker works, always stopped at the end."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from benchmarks.machine import available_bytes
from benchmarks.sides.side import Unavailable

ROOT = Path(__file__).resolve().parent.parent
_LONGEST_SECONDS = 900.0
_GRACE_SECONDS = 3.0


class WorkerFailed(Exception):
    """A worker answered with an error, or not at all; the message is its own, or the end of its log."""


class Hand:
    """One worker process from the outside.

    Args:
        python: the interpreter with the packages of the side.
        side: the name of the side.
        threads: number of threads for its computation.
        log: the file for its output.
    """

    def __init__(self, python: Path, side: str, *, threads: int, log: Path) -> None:
        self._log = log
        quiet = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                [python, "-m", "benchmarks.worker", side, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=ROOT,
                env={**os.environ, **quiet, "OMP_NUM_THREADS": str(threads)},
                start_new_session=True,  # Ctrl-C is the command's to hear
            )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._requests = self._process.stdin
        self._answers: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, args=(self._process.stdout,), daemon=True)
        self._listener.start()

    def _listen(self, answers: IO[str]) -> None:
        with answers:
            for line in answers:
                self._answers.put(line)
        self._answers.put("")

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Return the worker's answer. Raises Unavailable, WorkerFailed."""
        try:
            self._requests.write(json.dumps(request) + "\n")
            self._requests.flush()
            line = self._answers.get(timeout=_LONGEST_SECONDS)
        except (OSError, queue.Empty):
            line = ""
        if not line:
            self.close()
            raise WorkerFailed(f"its process ended, or did not answer: {self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "unavailable" in answer:
            raise Unavailable(answer["unavailable"])
        if "error" in answer:
            raise WorkerFailed(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it printed nothing"

    @property
    def has_ended(self) -> bool:
        """True if the process has ended."""
        return self._process.poll() is not None

    def cpu_seconds(self) -> float:
        """Return the CPU time of all its threads; 0 if the system does not report it."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return 0.0
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def hang_up(self) -> None:
        """Tell the process that there is nothing more to do; an idle one ends."""
        with contextlib.suppress(OSError):
            self._requests.close()

    def close(self) -> None:
        """End the process and whatever it has started: asked first, then made to."""
        self.hang_up()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_SECONDS)
        for way in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(OSError, AttributeError):
                os.killpg(self._process.pid, way)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
        self._listener.join(_GRACE_SECONDS)


class Crew:
    """All workers of a run, each with one checkpoint loaded. A context manager: leaving it stops them.

    Args:
        pythons: the interpreter for each side.
        threads: number of threads per worker.
        logs: the folder for their output.
    """

    def __init__(self, pythons: Mapping[str, Path], *, threads: int, logs: Path) -> None:
        self._pythons, self._threads, self._logs = pythons, threads, logs
        self._hands: dict[str, Hand] = {}
        self._loaded: dict[str, dict[str, Any]] = {}
        self._refused: dict[str, Unavailable] = {}
        self._numbers = itertools.count()

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *exception: object) -> None:
        self.dismiss()

    def load(self, side: str, checkpoint: Path, options: Mapping[str, Any]) -> str:
        """Return the key of a worker that has the checkpoint loaded, started if need be. Raises as `ask`."""
        key = json.dumps([side, str(checkpoint), dict(options)], sort_keys=True)
        if key in self._refused:
            raise self._refused[key]
        if key not in self._loaded:
            _check_memory(checkpoint)
            log = self._logs / f"{next(self._numbers)}-{side}-{checkpoint.name}.log"
            hand = self._hands[key] = Hand(self._pythons[side], side, threads=self._threads, log=log)
            request = {"do": "load", "checkpoint": str(checkpoint), "options": dict(options)}
            try:
                self._loaded[key] = hand.ask(request)
            except (Unavailable, WorkerFailed) as error:
                self._hands.pop(key).close()
                if isinstance(error, Unavailable):
                    self._refused[key] = error
                raise
        return key

    def facts(self, key: str) -> dict[str, Any]:
        """Return the worker's answer to the load request."""
        return self._loaded[key]

    def run(self, key: str, work: Mapping[str, Any], *, before: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have a worker do a piece of work while all others sleep. Raises as `ask`.

        before: work that the worker does first, without a pause between the two, and does not time; None for none.
        """
        self._settle()
        hand = self._hands.get(key)
        if hand is None:
            raise WorkerFailed("its process has ended")
        try:
            return hand.ask({"do": "run", "work": work, "before": before})
        finally:
            if hand.has_ended:  # the next case starts another
                del self._hands[key], self._loaded[key]

    def _settle(self, *, pause: float = 0.05, longest: float = 3.0) -> None:
        """Wait until no worker computes any more: some keep their threads awake for a while after their work."""
        end = time.monotonic() + longest
        still, spent = 0, self._spent()
        while still < 3 and time.monotonic() < end:
            time.sleep(pause)
            now = self._spent()
            still, spent = (still + 1 if now == spent else 0), now

    def _spent(self) -> float:
        return sum(hand.cpu_seconds() for hand in self._hands.values())

    def dismiss(self, *, but: str | None = None) -> None:
        """Stop all workers to free their memory. but: the key of a worker to keep."""
        leaving = [key for key in self._hands if key != but]
        for key in leaving:
            self._hands[key].hang_up()
        for key in leaving:
            self._hands.pop(key).close()
            self._loaded.pop(key, None)


def _check_memory(checkpoint: Path) -> None:
    """Refuse a checkpoint that would leave the machine without memory; a side can hold it twice during loading."""
    needed = 2 * sum(file.stat().st_size for file in checkpoint.glob("*.safetensors"))
    available = available_bytes()
    if available is not None and available < needed:
        gib = 2**30
        raise Unavailable(f"it may take {needed / gib:.1f} GiB of memory to load, and {available / gib:.1f} are free")

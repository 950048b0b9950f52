"""The tuning file: times of linear layers and of streams on this machine, kept in the user's cache folder.

One file per CPU, PyTorch and Unspool version and kernel library. A damaged file counts as empty, and a folder that
cannot be written means that times last for this process.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final, get_args

import torch

from unspool.atomic_files import write_atomically
from unspool.kernels.library import kernels
from unspool.kernels.packed import STREAMS
from unspool.machine.cpu import cpu_key
from unspool.runtimes.weights.trial import Form, Shape, Times
from unspool.tuning import TRIAL_ROWS

_DIGEST: Final = 16


class TuningFile:
    """The times of this machine.

    Args:
        path: the file; None for the one of this machine.

    Attributes:
        path: the file.
        seconds: time that automatic trials have taken so far, over all processes.
        times: per shape.
        streams: per number of threads, the seconds for each number of streams; see `Trial.streams`.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or tuning_folder() / f"linear-{_digest(machine())}.json"
        self.seconds = 0.0
        self.times: dict[Shape, Times] = {}
        self.streams: dict[int, dict[int, float]] = {}
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            self._read(json.loads(self.path.read_text(encoding="utf-8")))

    def _read(self, content: dict[str, Any]) -> None:
        if content["machine"] != machine() or content["rows"] != list(TRIAL_ROWS):
            return
        times: dict[Shape, Times] = {}
        for entry in content["layers"]:
            shape = Shape(entry["in"], entry["out"], getattr(torch, entry["dtype"]), entry["threads"])
            times[shape] = {form: tuple(map(float, entry["seconds"][form])) for form in get_args(Form)}
        streams = {
            int(threads): {count: float(seconds[str(count)]) for count in STREAMS}
            for threads, seconds in content["streams"].items()
        }
        self.seconds, self.times, self.streams = float(content["spent"]), times, streams

    def write(self) -> None:
        """Write the file at once, if the folder can be written."""
        layers = [
            {
                "in": shape.in_features,
                "out": shape.out_features,
                "dtype": str(shape.dtype).removeprefix("torch."),
                "threads": shape.threads,
                "seconds": times,
            }
            for shape, times in self.times.items()
        ]
        content = {
            "machine": machine(),
            "rows": TRIAL_ROWS,
            "spent": self.seconds,
            "streams": self.streams,
            "layers": layers,
        }
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self.path, json.dumps(content, indent=1) + "\n")


def tuning_folder() -> Path:
    """Return the folder of tuning files: "unspool/tuning" in the assets of the Hugging Face cache.

    It follows HF_ASSETS_CACHE, HF_HOME and XDG_CACHE_HOME.
    """
    from huggingface_hub import constants

    return Path(constants.HF_ASSETS_CACHE) / "unspool" / "tuning"


def machine() -> dict[str, str]:
    """Return the facts that times depend on: CPU, PyTorch, Unspool, kernels."""
    try:
        ours = version("unspool")
    except PackageNotFoundError:  # a source tree that is not installed
        ours = "source"
    library = kernels()
    level = "" if library is None else f"{library.level} {library.version}"
    return {"cpu": cpu_key(), "torch": torch.__version__, "unspool": ours, "kernels": level}


def _digest(facts: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_DIGEST]

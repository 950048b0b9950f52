"""The record of a run: one JSON file, written anew after each case, so that an interrupted run keeps its results.

    {"schema": 1, "date": "2026-11-22", "quick": false, "finished": true, "seconds": 812.0,
     "machine": {"cpu": ..., "cores": 2, "threads": 2, "memory_gib": ..., "bandwidth": {"best": ..., "median": ...}},
     "versions": {"unspool": ..., "torch": ..., ...},
     "checkpoints": {name: {"title": ..., "weights_read": ...}},
     "cases": [{"name", "title", "checkpoint", "kind", "measures", "note", "same_tokens", "bandwidths",
                "entries": [{"label", "side", "status", "reason", "seconds", "first_seconds", ...}]}]}

Times are in seconds, memory in bytes, bandwidths in bytes per second; a list has one value per round.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

SCHEMA = 1
FOLDER = Path(__file__).resolve().parent / "results"


class Results:
    """A record that grows.

    Args:
        file: its path.
        machine: facts of the machine.
        checkpoints: title and count of weights, by name.
        quick: whether the models are tiny, so that the figures mean nothing.
    """

    def __init__(self, file: Path, *, machine: Mapping[str, Any], checkpoints: Mapping[str, Any], quick: bool) -> None:
        self.file = file
        self._started = time.monotonic()
        self.record: dict[str, Any] = {
            "schema": SCHEMA,
            "date": today(),
            "quick": quick,
            "finished": False,
            "seconds": 0.0,
            "machine": dict(machine),
            "versions": {},
            "checkpoints": dict(checkpoints),
            "cases": [],
        }

    def add(self, case: Mapping[str, Any]) -> None:
        """Take in a case and save."""
        self.record["cases"].append(case)
        for entry in case["entries"]:
            self.record["versions"].update(entry.pop("versions"))
        readings = [reading for each in self.record["cases"] for reading in each["bandwidths"]]
        if readings:
            self.record["machine"]["bandwidth"] = {"best": max(readings), "median": statistics.median(readings)}
        self._save()

    def finish(self) -> None:
        """Say that nothing is missing, and save."""
        self.record["finished"] = True
        self._save()

    def keep(self, folder: Path = FOLDER) -> None:
        """Put the record among the project's own as well, in place of older ones of the same machine."""
        self.file = keep(self.file, folder / self.file.name)

    def _save(self) -> None:
        self.record["seconds"] = round(time.monotonic() - self._started, 1)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.file.with_name(self.file.name + ".unfinished")
        unfinished.write_text(json.dumps(self.record, indent=1) + "\n")
        os.replace(unfinished, self.file)


def today() -> str:
    """Return the date as records write it."""
    return time.strftime("%Y-%m-%d")


def read(file: Path) -> dict[str, Any]:
    """Return a record. Raises ValueError if this version cannot read it."""
    record: dict[str, Any] = json.loads(file.read_text())
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{file} has schema {record.get('schema')}, and this version reads {SCHEMA}")
    return record


def keep(file: Path, kept: Path, read: Callable[[Path], dict[str, Any]] = read) -> Path:
    """Copy a record, and delete the other records of its machine in the folder of the copy. Returns the copy's path."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    machine = _machine_of(read(file))
    older = [each for each in kept.parent.glob("*.json") if each != kept and _machine_of(read(each)) == machine]
    shutil.copy(file, kept)
    for each in older:
        each.unlink()
    return kept


def of_all_machines(folder: Path = FOLDER, read: Callable[[Path], dict[str, Any]] = read) -> list[dict[str, Any]]:
    """Return the newest record of a full run of each machine, the newest first. Names begin with the date."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for file in sorted(folder.glob("*.json"), key=lambda file: file.name, reverse=True):
        record = read(file)
        found.setdefault(_machine_of(record), record)
    return list(found.values())


def _machine_of(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the facts that tell machines apart."""
    return tuple(str(record["machine"].get(name)) for name in ("cpu", "vector", "cores"))

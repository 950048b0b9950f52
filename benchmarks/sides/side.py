"""The interface of a side: load a checkpoint, do a piece of work."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from benchmarks.work import Work

_MODULES = {
    "unspool": "unspool",
    "transformers": "transformers",
    "ctranslate2": "ctranslate2",
    "llama.cpp": "llama_cpp",
    "bandwidth": "bandwidth",
    "startup": "startup",
}
SIDES = tuple(_MODULES)


class Unavailable(Exception):
    """A side cannot do this here, through no fault of its own; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The result of a piece of work.

    token_ids: of each prompt's first output, without the prompt.
    first_seconds: until the first token was there; None if it was not measured.
    passes: number of passes over the weights; None if unknown.
    parts: further figures by name, such as seconds spent in parts of the work.
    """

    token_ids: list[list[int]] = field(default_factory=list)
    first_seconds: float | None = None
    passes: int | None = None
    parts: Mapping[str, float] = field(default_factory=dict)


class Side(Protocol):
    """One program that runs checkpoints, on a given number of threads."""

    def load(self, checkpoint: Path, options: Mapping[str, Any]) -> str:
        """Load a checkpoint and return in words how it will be run. Raises Unavailable."""

    def run(self, work: Work) -> Run:
        """Do a piece of work with the loaded checkpoint. Raises Unavailable."""

    def versions(self) -> Mapping[str, str]:
        """Return the versions of the packages that do the work."""


def side_of(name: str, threads: int) -> Side:
    """Return a new side. Raises Unavailable if its package is not installed."""
    try:
        module = importlib.import_module(f"benchmarks.sides.{_MODULES[name]}")
    except ModuleNotFoundError as error:
        raise Unavailable(f"{error.name} is not installed") from error
    side: Side = module.make(threads)
    return side

"""The progress bar over many prompts, and messages about long work. Imports tqdm only if a bar is shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

MANY = 16


class _NoBar:
    def update(self) -> None:
        """Show nothing."""


@contextmanager
def progress_bar(total: int, wanted: bool | None, *, work: str = "generating", unit: str = "prompt") -> Iterator[Any]:
    """Give a bar with `update()`, to be called once per unit.

    Args:
        total: number of units.
        wanted: True or False; None for a bar if standard error is a terminal and there are at least 16 units.
        work: the verb before the bar.
        unit: the name of one unit.
    """
    if wanted is None:
        wanted = total >= MANY and sys.stderr.isatty()
    if not wanted:
        yield _NoBar()
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit=unit, desc=work) as bar:
        yield bar


def tell(message: str) -> None:
    """Write a line to standard error, if it is a terminal."""
    if sys.stderr.isatty():
        print(message, file=sys.stderr, flush=True)

"""The progress bar over many prompts. Imports tqdm only where a bar is shown."""

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
def progress_bar(total: int, wanted: bool | None) -> Iterator[Any]:
    """Give a bar with `update()`, to be called once a prompt.

    Args:
        total: number of prompts.
        wanted: True or False; None for: where standard error is a terminal and there are at least 16 prompts.
    """
    if wanted is None:
        wanted = total >= MANY and sys.stderr.isatty()
    if not wanted:
        yield _NoBar()
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, unit="prompt", desc="generating") as bar:
        yield bar

"""The files of the explorer's page: modules, style, icon. The server and the HTML files of traces use them."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import PurePosixPath
from typing import Final

INDEX: Final = "index.html"
_ENDINGS: Final = frozenset({".html", ".css", ".js", ".mjs", ".svg"})


@cache
def web_files() -> dict[str, bytes]:
    """Return the files that a browser can load: path relative to the folder `web` --> content."""
    found: dict[str, bytes] = {}

    def add(folder: Traversable, prefix: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                add(entry, f"{prefix}{entry.name}/")
            elif PurePosixPath(entry.name).suffix in _ENDINGS:
                found[prefix + entry.name] = entry.read_bytes()

    add(files("unspool") / "explorer" / "web", "")
    return found

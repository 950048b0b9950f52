"""The control groups of this process on Linux (cgroup v1 and v2): the folders that hold their limits.

Imports nothing of ours. Does not know: which limits there are, or their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")


class Group(NamedTuple):
    """The folder of one control group, and whether it is of cgroup v2."""

    folder: Path
    is_v2: bool


def groups(controller: str) -> tuple[Group, ...]:
    """Return this process's groups under a controller, such as "cpu", and their parents. Some folders do not exist."""
    return _groups(controller, read(_OWN_CGROUPS), _CGROUPS)


@lru_cache(maxsize=16)
def _groups(controller: str, own_groups: str, root: Path) -> tuple[Group, ...]:
    found: list[Group] = []
    for line in own_groups.splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            found += [Group(folder, True) for folder in _with_parents((root, root / "unified"), own)]
        elif controller in controllers.split(","):
            found += [Group(folder, False) for folder in _with_parents((root / controllers, root / controller), own)]
    return tuple(found)


def _with_parents(mounts: tuple[Path, ...], own: str) -> Iterator[Path]:
    path = PurePosixPath(own.lstrip("/"))
    for mount in filter(Path.is_dir, dict.fromkeys(mounts)):
        yield from (mount / group for group in (path, *path.parents))


def read(path: Path) -> str:
    """Return the text of a file; "" if it cannot be read."""
    try:
        with path.open("rb", buffering=0) as file:  # twice as fast as `read_text`
            return file.readall().decode().strip()
    except OSError:
        return ""

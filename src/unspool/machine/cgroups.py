"""The control groups of this process on Linux (cgroup v1 and v2): the folders that hold their limits.

Imports nothing of ours. Does not know: which limits there are, or their meaning.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

_CGROUPS: Final = Path("/sys/fs/cgroup")
_OWN_CGROUPS: Final = Path("/proc/self/cgroup")


class Group(NamedTuple):
    """The folder of one control group, and whether it is of cgroup v2."""

    folder: Path
    is_v2: bool


def groups(controller: str) -> Iterator[Group]:
    """Yield this process's groups under a controller, such as "cpu", and their parents. Some folders do not exist."""
    for line in read(_OWN_CGROUPS).splitlines():
        _, controllers, own = line.split(":", 2)
        if controllers == "":
            for folder in _with_parents((_CGROUPS, _CGROUPS / "unified"), own):
                yield Group(folder, True)
        elif controller in controllers.split(","):
            for folder in _with_parents((_CGROUPS / controllers, _CGROUPS / controller), own):
                yield Group(folder, False)


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

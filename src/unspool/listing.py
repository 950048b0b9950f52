"""How transformers lists its models while it is imported: each file is read once, and split only where that is needed.

Two of its packages each read the thousands of files of all models to learn their names, and split them into lines:
half a second before the first token. The answers are transformers' own; only how often and of what it is asked is ours.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

_HOME = "transformers.utils.import_utils"
_SCAN, _NAMES, _LAST = "create_import_structure_from_path", "fetch__all__", "define_import_structure"


@contextmanager
def listed_once() -> Iterator[None]:
    """Let transformers list its models once and faster, if it is imported while the context lasts.

    Afterwards everything is as transformers has made it, and nothing that was read is held. A transformers that has no
    such functions, or has listed its models before, is left alone.
    """
    if "transformers.models" in sys.modules:
        yield
        return
    listener = _Listener()
    # A list of its own each time: what another thread looks through just now must not shift under it.
    sys.meta_path = [listener, *sys.meta_path]
    try:
        yield
    finally:
        sys.meta_path = [finder for finder in sys.meta_path if finder is not listener]
        listener.close()


class _Listener:
    """Hears of each import, finds nothing, and steps in as soon as transformers' own functions are there.

    This is between two imports of transformers' own: its first list is made before `import transformers` returns.
    """

    def __init__(self) -> None:
        self._listing: _Listing | None = None
        self._listens = True

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if self._listens and fullname.startswith("transformers."):
            module = sys.modules.get(_HOME)
            # What is defined last is there only when the others are whole.
            if module is not None and {_SCAN, _NAMES, _LAST} <= vars(module).keys():
                self._listens = False
                # Where another thread has stepped in already, that is enough, and it gives the functions back.
                if not isinstance(getattr(vars(module)[_NAMES], "__self__", None), _Listing):
                    self._listing = _Listing(module)

    def close(self) -> None:
        """Stop listening, and give back what was taken."""
        self._listens = False
        if self._listing is not None:
            self._listing.close()


class _Listing:
    """Stands in for the two functions of transformers that list its models, and asks them."""

    def __init__(self, module: ModuleType) -> None:
        self._module = vars(module)
        self._scan, self._names = self._module[_SCAN], self._module[_NAMES]
        self._known: dict[str, Any] = {}
        self._ours = {_SCAN: self._scan_once, _NAMES: self._names_of}
        self._module.update(self._ours)

    def close(self) -> None:
        """Give the functions back; where somebody else has put one of their own meanwhile, that one stays."""
        for name, theirs in ((_SCAN, self._scan), (_NAMES, self._names)):
            if self._module[name] == self._ours[name]:
                self._module[name] = theirs

    def _scan_once(self, module_path: str | os.PathLike[str]) -> Any:
        """Ask about a folder, or that of a file, once. transformers' own memory holds 128 folders of far more."""
        folder = os.path.dirname(module_path) if os.path.isfile(module_path) else os.fspath(module_path)
        if folder not in self._known:
            self._known[folder] = self._scan(folder)
        return self._known[folder]

    def _names_of(self, file_content: str) -> Any:
        """Ask about the end of a file, from the last line on that begins with `__all__`: no line before it counts."""
        start = file_content.rfind("\n__all__")
        return self._names(file_content[start + 1 :])

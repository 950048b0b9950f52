"""JsonText: a mixin that adds `to_json` to result classes with `to_dict`."""

from __future__ import annotations

import json
from typing import Any


class JsonText:
    """Mixin that adds `to_json` to a result."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the result as plain JSON values."""
        raise NotImplementedError

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict()` as JSON text.

        Args:
            indent: spaces per level; None for one line, as in JSONL.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

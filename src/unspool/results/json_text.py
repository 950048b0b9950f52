"""JSON text of results: one method for every class that has `to_dict`."""

from __future__ import annotations

import json
from typing import Any


class JsonText:
    """Adds `to_json` to a result."""

    __slots__ = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        raise NotImplementedError

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `to_dict()` as JSON text.

        Args:
            indent: spaces per level; None for one line, as JSONL needs it.
        """
        return json.dumps(self.to_dict(), ensure_ascii=False, indent=indent, allow_nan=False)

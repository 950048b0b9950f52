"""The value of a text with a grammar: JSON, an instance of a pydantic class, or the text itself.

Owns: parsing, and the reason for a missing value. Does not know: tokens.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Parsed(NamedTuple):
    """value: of an output; None if it is missing. error: the reason for that; None otherwise."""

    value: Any
    error: str | None


def parse_text(option: str, value: Any, text: str) -> Parsed:
    """Return the value of a text that is in the language of its grammar.

    Args:
        option, value: the option that gave the grammar.
        text: a whole text of the language.
    """
    if option not in ("json_schema", "json_object"):
        return Parsed(text, None)
    model = value.model if option == "json_schema" else None
    kind = "JSON" if model is None else model.__name__
    try:
        return Parsed(json.loads(text) if model is None else model.model_validate_json(text), None)
    except Exception as error:  # a validator of the class can raise anything, and the output must not be lost
        return Parsed(None, f"the text is not valid {kind}: {error}")

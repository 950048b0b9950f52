"""The value of an output with a grammar: JSON, an instance of a pydantic class, or the text itself.

Owns: parsing, and the reason for a missing value. Does not know: tokens.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from unspool.options.fields.options import Options


class Parsed(NamedTuple):
    """value: of the output; None if it is missing. error: the reason for that; None otherwise."""

    value: Any
    error: str | None


def parse_text(config: Options, text: str, *, is_complete: bool, finish_reason: str) -> Parsed:
    """Return the value of an output's text under the grammar of its request.

    Args:
        config: with one of the grammar options on.
        text: of the output.
        is_complete: True if the text is in the language.
        finish_reason: of the output, for the reason.
    """
    if not is_complete:
        return Parsed(None, f"the text is not complete: finish_reason is {finish_reason!r}")
    if config.json_schema is None and not config.json_object:
        return Parsed(text, None)
    model: Any = config.json_schema.model if config.json_schema is not None else None
    try:
        return Parsed(json.loads(text) if model is None else model.model_validate_json(text), None)
    except (ValueError, RecursionError) as error:  # pydantic's ValidationError is a ValueError
        name = "JSON" if model is None else model.__name__
        return Parsed(None, f"the text is not a valid {name}: {error}")

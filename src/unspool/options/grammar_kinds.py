"""Kinds of option values for structured output: JSON schemas, and lists of texts to choose from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from unspool.options.kinds import Kind, Unfit, as_lists, items

GRAMMAR_OPTIONS: Final = ("json_schema", "json_object", "regex", "choice", "grammar")
"""The options that constrain an output to a formal language; a request has at most one of them."""


def grammar_option(config: Any) -> str | None:
    """Return the name of the option that sets the grammar of a resolved config; None if it is off."""
    return next((name for name in GRAMMAR_OPTIONS if getattr(config, name)), None)


class JsonSchema:
    """An immutable JSON schema.

    Attributes:
        text: the schema as JSON. The order of its properties is the order in the output.
        model: the pydantic model class that the schema comes from; None without a class.
    """

    __slots__ = ("model", "text")

    def __init__(self, text: str, model: type | None = None) -> None:
        self.text, self.model = text, model

    def __eq__(self, other: object) -> bool:
        return isinstance(other, JsonSchema) and (self.text, self.model) == (other.text, other.model)

    def __hash__(self) -> int:
        return hash((self.text, self.model))

    def __repr__(self) -> str:
        return self.text if self.model is None else self.model.__name__


def json_schema() -> Kind:
    """A JSON schema: a mapping, JSON text, or a pydantic model class --> JsonSchema"""

    def parse(value: Any) -> JsonSchema:
        if isinstance(value, JsonSchema):
            return value
        model = value if isinstance(value, type) and hasattr(value, "model_json_schema") else None
        try:
            schema = json.loads(value) if isinstance(value, str) else value if model is None else _schema_of(model)
            if not isinstance(schema, Mapping):
                raise Unfit
            return JsonSchema(json.dumps(dict(schema), ensure_ascii=False, allow_nan=False), model)
        except (TypeError, ValueError, RecursionError):
            raise Unfit from None

    return Kind(
        words="must be a JSON schema: a dict, JSON text of an object, or a pydantic model class",
        json_words="must be a JSON schema: an object, or its JSON text",
        parse=parse,
        cli_type="json",
        metavar="FILE|JSON",
        schema={"anyOf": [{"type": "string"}, {"type": "object"}]},
        dump=lambda schema: schema.text,  # an object in a file would lose the order of its properties
        reads_file=True,
    )


def _schema_of(model: Any) -> Any:
    """Return the JSON schema of a pydantic model class, without keys that the class does not declare.

    A class that allows further keys says so in its schema (`extra="allow"`).
    """
    try:
        return _closed(model.model_json_schema())
    except Exception:  # pydantic is not a dependency, so its errors cannot be named
        raise Unfit from None


def _closed(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _closed(part) for key, part in schema.items()}
    if schema.get("type") == "object" and isinstance(schema.get("properties"), dict):
        closed.setdefault("additionalProperties", False)
    return closed


def labels() -> Kind:
    """A list of at least one non-empty text; equal texts count once --> tuple[str, ...]"""

    def parse(value: Any) -> tuple[str, ...]:
        given = tuple(items(value))
        if not given or not all(isinstance(text, str) and text for text in given):
            raise Unfit
        return tuple(dict.fromkeys(given))

    return Kind(
        words="must be a list of at least one non-empty text",
        parse=parse,
        cli_type="str",
        metavar="TEXT,...",
        schema={"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        multiple=True,
        separator=",",
        dump=as_lists,
    )


def source_text(language: str, *, reads_file: bool = False) -> Kind:
    """A text in a formal language --> str

    Args:
        language: its name, for messages.
        reads_file: True if the command line also accepts the name of a file with the text.
    """

    def parse(value: Any) -> str:
        if not isinstance(value, str) or not value.strip():
            raise Unfit
        return value

    return Kind(
        words=f"must be {language}, as a non-empty text",
        parse=parse,
        cli_type="str",
        metavar="FILE|TEXT" if reads_file else "TEXT",
        schema={"type": "string", "minLength": 1},
        reads_file=reads_file,
    )

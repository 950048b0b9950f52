"""Serialization of frozen dataclasses to JSON and back, and their JSON schema, from the type annotations.

Supports integers, floats, strings, booleans, None, literals, homogeneous tuples, mappings with string keys, and
dataclasses of these. Does not know: the meaning of the values.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")

_NAMES: Mapping[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}


def to_plain(value: Any) -> Any:
    """Return the value as lists, dictionaries and scalars."""
    if is_dataclass(value):
        return {each.name: to_plain(getattr(value, each.name)) for each in fields(value)}
    if isinstance(value, tuple | list):
        return [to_plain(each) for each in value]
    if isinstance(value, Mapping):
        return {name: to_plain(each) for name, each in value.items()}
    return value


def from_plain(kind: type[T], value: Any) -> T:
    """Return the value of this type from its plain form; the inverse of `to_plain`.

    Raises:
        ValueError: if the plain form is invalid; the message has the path and the reason.
    """
    built: T = _build(kind, value, kind.__name__)
    return built


def _build(kind: Any, value: Any, path: str) -> Any:
    if is_dataclass(kind):
        return _build_dataclass(kind, value, path)
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        options = [each for each in arguments if each is not type(None)]
        return None if value is None and len(options) < len(arguments) else _build(options[0], value, path)
    if origin is tuple:
        _expect(isinstance(value, list), path, "a list", value)
        return tuple(_build(arguments[0], each, f"{path}[{index}]") for index, each in enumerate(value))
    if origin is Literal:
        _expect(value in arguments, path, f"one of {', '.join(map(repr, arguments))}", value)
        return value
    if _is_mapping(kind):
        _expect(isinstance(value, dict), path, "an object", value)
        return value
    accepted = (int, float) if kind is float else kind
    good = isinstance(value, accepted) and (kind is bool or not isinstance(value, bool))
    _expect(good, path, f"a value of type {_NAMES[kind]}", value)
    return float(value) if kind is float else value


def _build_dataclass(kind: Any, value: Any, path: str) -> Any:
    _expect(isinstance(value, dict), path, "an object", value)
    hints = _hints(kind)
    _expect(value.keys() == hints.keys(), path, f"an object with exactly {', '.join(hints)}", sorted(value))
    return kind(**{name: _build(hint, value[name], f"{path}.{name}") for name, hint in hints.items()})


def _expect(good: bool, path: str, wanted: str, value: Any) -> None:
    if not good:
        raise ValueError(f"{path} must be {wanted}, got {value!r}")


@cache
def _hints(kind: Any) -> dict[str, Any]:
    """Return the type of each field."""
    hints = get_type_hints(kind)
    return {each.name: hints[each.name] for each in fields(kind)}


def _is_mapping(kind: Any) -> bool:
    origin = get_origin(kind)
    return isinstance(origin, type) and issubclass(origin, Mapping)


def schema_of(kind: type) -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a dataclass; nested dataclasses are in "$defs" by name."""
    definitions: dict[str, Any] = {}
    body = _schema(kind, definitions)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **body, "$defs": definitions}


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    if is_dataclass(kind):
        assert isinstance(kind, type), "a class, not an object of it"
        if kind.__name__ not in definitions:
            definitions[kind.__name__] = {}  # reserve the name first, because a class can contain itself
            properties = {name: _schema(hint, definitions) for name, hint in _hints(kind).items()}
            definitions[kind.__name__] = {
                "type": "object",
                "properties": properties,
                "required": list(properties),
                "additionalProperties": False,
            }
        return {"$ref": f"#/$defs/{kind.__name__}"}
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return {}
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each, definitions) for each in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is Literal:
        return {"enum": list(arguments)}
    if _is_mapping(kind):
        return {"type": "object"}
    return {"type": _NAMES[kind]}

"""Sixty JSON schemas of the usual kinds, each with valid and invalid instances."""

from __future__ import annotations

from typing import Any, NamedTuple


class Case(NamedTuple):
    """A schema and instances; keys of instances are in the order of the schema's properties."""

    name: str
    schema: dict[str, Any]
    valid: list[Any]
    invalid: list[Any]


def _object(properties: dict[str, Any], required: list[str] | None = None, **rest: Any) -> dict[str, Any]:
    names = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": names, "additionalProperties": False} | rest


_TEXT, _INT, _NUMBER, _FLAG = {"type": "string"}, {"type": "integer"}, {"type": "number"}, {"type": "boolean"}
_POINT = _object({"x": _NUMBER, "y": _NUMBER})

CASES = [
    Case("string", _TEXT, ["", "é🙂", 'a "b" \\ c\n'], [1, None, ["a"]]),
    Case("integer", _INT, [0, -7, 12345678901234567890], [1.5, "1", True]),
    Case("number", _NUMBER, [0, -1.5, 1e300], ["1.5", None]),
    Case("boolean", _FLAG, [True, False], [0, "true"]),
    Case("null", {"type": "null"}, [None], [0, "", False]),
    Case("any value", {}, [None, 1, "a", [1, {"b": []}]], []),
    Case("constant", {"const": {"a": [1, "é"]}}, [{"a": [1, "é"]}], [{"a": [1]}, {}]),
    Case("enum of texts", {"enum": ["red", "green", "dark blue"]}, ["red", "dark blue"], ["blue", "", 0]),
    Case("enum of kinds", {"enum": [1, "1", None, [2]]}, [1, "1", None, [2]], [2, "2", []]),
    Case("enum of a type", {"type": "integer", "enum": [1, "a", 2]}, [1, 2], ["a", 3]),
    Case("two types", {"type": ["integer", "null"]}, [3, None], ["3", 1.5]),
    Case("least number", {"type": "integer", "minimum": 18}, [18, 100], [17, -18]),
    Case("range", {"type": "integer", "minimum": -5, "maximum": 12}, [-5, 0, 12], [-6, 13, 120]),
    Case("open range", {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}, [1, 9], [0, 10]),
    Case("range of reals", {"type": "number", "minimum": 0, "maximum": 1}, [0, 0.25, 1], [-0.1, 1.01]),
    Case("multiples", {"type": "integer", "multipleOf": 7}, [0, 7, 700], [1, 8, 71]),
    Case("prices", {"type": "number", "multipleOf": 0.5, "minimum": 0}, [0.5, 2, 10.0], [0.25, 1.1]),
    Case("short text", {"type": "string", "maxLength": 3}, ["", "abc", "🙂🙂🙂"], ["abcd"]),
    Case("long text", {"type": "string", "minLength": 2, "maxLength": 5}, ["ab", "abcde"], ["a", "abcdef"]),
    Case("pattern", {"type": "string", "pattern": "^[A-Z]{2}-[0-9]+$"}, ["AB-1", "XY-007"], ["ab-1", "AB-", "AB-1 "]),
    Case("open pattern", {"type": "string", "pattern": "cat"}, ["cat", "a cat!"], ["dog", "ca t"]),
    Case("date", {"type": "string", "format": "date"}, ["2026-02-28"], ["2026-13-01", "28.2.2026"]),
    Case("date and time", {"type": "string", "format": "date-time"}, ["2026-02-28T12:30:00Z"], ["2026-02-28"]),
    Case("time", {"type": "string", "format": "time"}, ["12:30:00Z"], ["25:00:00Z", "noon"]),
    Case("address", {"type": "string", "format": "ipv4"}, ["127.0.0.1"], ["127.0.0.1.5", "localhost"]),
    Case("identifier", {"type": "string", "format": "uuid"}, ["123e4567-e89b-12d3-a456-426614174000"], ["123e4567"]),
    Case("mail", {"type": "string", "format": "email"}, ["a@example.org"], ["a at example.org"]),
    Case("array", {"type": "array", "items": _INT}, [[], [1], [1, -2, 3]], [["1"], [1, None], {}]),
    Case("short array", {"type": "array", "items": _TEXT, "maxItems": 2}, [[], ["a", "b"]], [["a", "b", "c"]]),
    Case("long array", {"type": "array", "items": _FLAG, "minItems": 2}, [[True, False]], [[], [True]]),
    Case("array of three", {"type": "array", "items": _INT, "minItems": 3, "maxItems": 3}, [[1, 2, 3]], [[1, 2]]),
    Case(
        "tuple", {"type": "array", "prefixItems": [_TEXT, _INT], "items": False, "minItems": 2}, [["a", 1]], [[1, "a"]]
    ),
    Case("open tuple", {"type": "array", "prefixItems": [_TEXT], "items": _INT}, [["a"], ["a", 1, 2]], [["a", "b"]]),
    Case("matrix", {"type": "array", "items": {"type": "array", "items": _NUMBER}}, [[[1, 0.5], []]], [[1], [["a"]]]),
    Case("object", _object({"a": _INT, "b": _TEXT}), [{"a": 1, "b": "x"}], [{"a": 1}, {"a": "1", "b": "x"}]),
    Case("optional key", _object({"a": _INT, "b": _TEXT}, ["a"]), [{"a": 1}, {"a": 1, "b": ""}], [{"b": ""}, {}]),
    Case("all optional", _object({"a": _INT, "b": _INT}, []), [{}, {"a": 1}, {"b": 2}, {"a": 1, "b": 2}], [{"c": 1}]),
    Case("closed object", _object({}), [{}], [{"a": 1}]),
    Case("open object", {"type": "object", "properties": {"a": _INT}}, [{}, {"a": 1, "z": "?"}], [{"a": "1"}]),
    Case("map", {"type": "object", "additionalProperties": _INT}, [{}, {"a": 1, "b c": 2}], [{"a": "1"}]),
    Case("named map", {"type": "object", "required": ["a"], "additionalProperties": _INT}, [{"a": 1}], [{}, {"b": 1}]),
    Case(
        "keys by pattern",
        {"type": "object", "patternProperties": {"^n_": _INT}, "additionalProperties": False},
        [{}, {"n_a": 1}],
        [{"n_a": "1"}, {"a": 1}],
    ),
    Case(
        "few keys",
        {"type": "object", "additionalProperties": _INT, "maxProperties": 1},
        [{}, {"a": 1}],
        [{"a": 1, "b": 2}],
    ),
    Case("some key", {"type": "object", "additionalProperties": _INT, "minProperties": 1}, [{"a": 1}], [{}]),
    Case(
        "nested", _object({"p": _POINT, "q": _POINT}), [{"p": {"x": 1, "y": 2}, "q": {"x": 0, "y": 0.5}}], [{"p": {}}]
    ),
    Case(
        "list of objects", {"type": "array", "items": _POINT}, [[], [{"x": 1, "y": 2}]], [[{"x": 1}], {"x": 1, "y": 2}]
    ),
    Case(
        "reference",
        {"$defs": {"p": _POINT}, "type": "array", "items": {"$ref": "#/$defs/p"}},
        [[{"x": 1, "y": 2}]],
        [[{}]],
    ),
    Case(
        "old reference",
        {"definitions": {"n": _INT}, "type": "object", "additionalProperties": {"$ref": "#/definitions/n"}},
        [{"a": 1}],
        [{"a": "1"}],
    ),
    Case(
        "tree",
        _object({"v": _INT, "c": {"type": "array", "items": {"$ref": "#"}}}),
        [{"v": 1, "c": []}, {"v": 1, "c": [{"v": 2, "c": []}]}],
        [{"v": 1}, {"v": 1, "c": [1]}],
    ),
    Case(
        "linked list",
        {
            "$defs": {"n": _object({"v": _INT, "next": {"anyOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}})},
            "$ref": "#/$defs/n",
        },
        [{"v": 1, "next": None}, {"v": 1, "next": {"v": 2, "next": None}}],
        [{"v": 1}, {"v": 1, "next": 2}],
    ),
    Case("any of", {"anyOf": [_INT, {"type": "string", "maxLength": 2}]}, [1, "ab"], ["abc", None]),
    Case(
        "one of two kinds",
        {"oneOf": [_object({"k": {"const": "a"}, "n": _INT}), _object({"k": {"const": "b"}, "t": _TEXT})]},
        [{"k": "a", "n": 1}, {"k": "b", "t": "x"}],
        [{"k": "a", "t": "x"}, {"k": "c"}],
    ),
    Case("all of", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]}, [3, 8], [2, 9]),
    Case(
        "nullable",
        _object({"name": {"anyOf": [_TEXT, {"type": "null"}]}}),
        [{"name": None}, {"name": "x"}],
        [{"name": 1}],
    ),
    Case("default", _object({"n": {"type": "integer", "default": 3, "title": "N"}}, []), [{}, {"n": 4}], [{"n": "4"}]),
    Case(
        "keys with marks",
        _object({'a "b"': _INT, "c\\d": _INT, "é": _INT}),
        [{'a "b"': 1, "c\\d": 2, "é": 3}],
        [{"a": 1}],
    ),
    Case(
        "person",
        _object(
            {"name": _TEXT, "age": {"type": "integer", "minimum": 0, "maximum": 150}, "mail": _TEXT}, ["name", "age"]
        ),
        [{"name": "Ann", "age": 30}, {"name": "", "age": 0, "mail": "x"}],
        [{"name": "Ann", "age": 151}, {"age": 1}],
    ),
    Case(
        "tool call",
        _object({"name": {"const": "search"}, "arguments": _object({"query": _TEXT, "limit": _INT}, ["query"])}),
        [{"name": "search", "arguments": {"query": "q"}}],
        [{"name": "find", "arguments": {"query": "q"}}],
    ),
    Case(
        "order",
        _object(
            {
                "items": {
                    "type": "array",
                    "minItems": 1,
                    "items": _object(
                        {"sku": {"type": "string", "pattern": "^[A-Z]{3}$"}, "count": {"type": "integer", "minimum": 1}}
                    ),
                },
                "express": _FLAG,
            }
        ),
        [{"items": [{"sku": "ABC", "count": 2}], "express": False}],
        [{"items": [], "express": True}],
    ),
    Case(
        "settings",
        {
            "type": "object",
            "properties": {"level": {"enum": ["low", "high"]}},
            "required": ["level"],
            "additionalProperties": _NUMBER,
        },
        [{"level": "low"}, {"level": "high", "gain": 0.5}],
        [{"level": "mid"}, {"gain": 1}],
    ),
    Case(
        "review",
        _object(
            {
                "summary": {"type": "string", "minLength": 1, "maxLength": 40},
                "stars": {"enum": [1, 2, 3, 4, 5]},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
            }
        ),
        [{"summary": "good", "stars": 5, "tags": []}],
        [{"summary": "", "stars": 5, "tags": []}],
    ),
]

SMALL = [
    case.name
    for case in CASES
    if case.name not in ("string", "any value", "number", "open pattern", "map", "matrix", "open object", "tree")
]
"""Cases with outputs that a small model ends within some hundred tokens, most of the time."""

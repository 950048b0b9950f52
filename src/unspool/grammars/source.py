"""The source of a grammar: from an option's value to llguidance's form, and from llguidance's errors to ours.

Owns: the size limits of sources, white space in JSON, and the names of keywords that cannot be enforced.
Does not know: tokenizers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from unspool.errors import OptionError
from unspool.options.grammar_kinds import JsonSchema

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

LONGEST_SOURCE: Final = 50_000
"""Most characters of a grammar: longer ones can take seconds to compile."""

_LARGEST_DIVISOR: Final = 20_000
"""Largest `multipleOf`, in units of its last digit: a lexer needs one state per remainder."""

JSON_DEFAULTS: Final[JsonCompileOptions] = {
    "whitespace_flexible": False,
    "item_separator": ", ?",
    "key_separator": ": ?",
}
"""JSON on one line, with an optional space after a comma or colon: small models can loop in free white space. The key
"x-guidance" of a schema overrides this."""

_STRICT: Final[JsonCompileOptions] = {"lenient": False, "coerce_one_of": False}
"""A schema cannot ask to ignore its own keywords."""

_ENFORCE: Final = "leave it out, and check the parsed value yourself"


def grammar_text(option: str, value: Any) -> str:
    """Return the grammar of an option's value in llguidance's form.

    Raises:
        OptionError: if the value is too long, or has a part that cannot be enforced.
    """
    source = value.text if isinstance(value, JsonSchema) else "".join(value) if option == "choice" else value
    if isinstance(source, str) and len(source) > LONGEST_SOURCE:
        allowed = f"must have at most {LONGEST_SOURCE} characters ({len(source)} are given)"
        raise OptionError(option, value, allowed, "make it shorter")
    if option == "json_schema":
        _check_schema(value)
    try:
        return _converted(option, value)
    except Exception as error:  # llguidance raises ValueError, and its GBNF reader an error of its own
        raise refusal(option, value, str(error)) from None


def _converted(option: str, value: Any) -> str:
    if option == "regex":
        return LLMatcher.grammar_from_regex(value)
    if option == "choice":
        texts = " | ".join(json.dumps(text, ensure_ascii=False) for text in value)
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
    if option == "grammar":
        return LLMatcher.grammar_from_lark(any_to_lark(value))
    return _json_grammar('{"type": "object"}' if option == "json_object" else _absorbed(value.text))


def _json_grammar(schema: str) -> str:
    return LLMatcher.grammar_from_json_schema(schema, defaults=JSON_DEFAULTS, overrides=_STRICT)


def _absorbed(schema: str) -> str:
    """Return the schema without each `anyOf` that has a member of the `allOf` beside it: a and (a or b) = a.

    llguidance intersects the two, which takes 0.2 s if they hold an enum of 30 texts.
    """
    if "/anyOf/" in schema:  # a reference can point into the removed part
        return schema
    whole, is_changed = json.loads(schema), False
    for part in _parts(whole):
        both, either = (_texts(part.get(key)) for key in ("allOf", "anyOf"))
        if both & either:
            del part["anyOf"]
            is_changed = True
    return json.dumps(whole, ensure_ascii=False) if is_changed else schema


def _texts(members: Any) -> set[str]:
    """Return the members of a list as JSON, which tells 1 from true."""
    return {json.dumps(each) for each in members if isinstance(each, dict)} if isinstance(members, list) else set()


def _check_schema(schema: JsonSchema) -> None:
    """Check the keywords that llguidance accepts and cannot enforce within its limits."""
    for part in _parts(json.loads(schema.text)):
        divisor = part.get("multipleOf")
        if isinstance(divisor, int | float) and _digits(divisor) > _LARGEST_DIVISOR:
            allowed = f"must not use multipleOf {divisor}, which is too large or has too many digits to be enforced"
            raise OptionError("json_schema", schema, allowed, _ENFORCE)
        least, required = part.get("minProperties"), part.get("required")
        # A key can come twice in JSON, but only required keys and one more key are counted once for certain.
        if isinstance(least, int) and least > 1 + len(set(required if isinstance(required, list) else ())):
            allowed = "must not use minProperties beyond the required properties and one more: it cannot be enforced"
            raise OptionError("json_schema", schema, allowed, "list the properties as required, or leave it out")


def _parts(schema: Any) -> Iterator[dict[str, Any]]:
    """Yield every object inside a schema. Values of `const`, `enum` and so on are data."""
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            yield part
            stack.extend(value for key, value in part.items() if key not in ("const", "enum", "default", "examples"))
        elif isinstance(part, list):
            stack.extend(part)


def _digits(number: float) -> int:
    """Return the absolute value of a number in units of its last decimal digit."""
    value = abs(Decimal(repr(number)).normalize())
    return int(value.scaleb(-min(0, int(value.as_tuple().exponent))))


def refusal(option: str, value: Any, error: str) -> OptionError:
    """Return the error for a grammar that llguidance refuses.

    Args:
        error: llguidance's message.
    """
    keys = re.search(r"Unimplemented keys: \[(.*?)\]", error)
    if keys:
        names = keys[1].replace('"', "")
        return OptionError(option, value, f"must not use {names}: that cannot be enforced", _ENFORCE)
    if kind := re.search(r"Unknown format: (\S+)", error):
        return OptionError(option, value, f"must not use the format {kind[1]}: it cannot be enforced", _ENFORCE)
    if "oneOf constraints" in error:
        allowed = "must not use oneOf if two alternatives can match one value: that cannot be enforced"
        return OptionError(option, value, allowed, "use anyOf, or give each alternative another constant or type")
    if re.search("too (many|big|large|deep|complex)|fuel|limit", error, re.IGNORECASE):
        hint = "make it smaller: fewer repetitions, alternatives and levels"
        return OptionError(option, value, f"is too large or too ambiguous ({_summary(error)})", hint)
    return OptionError(option, value, f"is not valid ({_summary(error)})", "see docs/structured.md for the dialects")


def _summary(error: str) -> str:
    """Return the telling lines of llguidance's message as one line."""
    lines = [line.strip() for line in error.split("<state>")[0].splitlines()]
    told = [line for line in lines if line and not set(line) <= set("^ |") and not re.match(r"\d+ \|", line)]
    return " ".join(told)[:300]

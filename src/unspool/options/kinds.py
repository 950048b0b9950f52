"""Kinds of option values: what is accepted, how it is normalized, how it is said in words, on a command line, in JSON.

Owns: checking and normalizing one value; token ids have a file of their own. Does not know: option names, defaults, or
other options. Normalized values are immutable, so that a config can be shared, compared and hashed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, TypeAlias

CliType: TypeAlias = Literal["bool", "int", "float", "str", "json"]


GREATEST: Final = 1e18
"""Largest size of any number, and LEAST the smallest one of a divisor: scores are float32, which ends at 3e38, and an
option must not make +inf or NaN of them, also together with another option."""

LEAST: Final = 1e-18


class Unfit(Exception):
    """The value is not of this kind; whoever knows the option's name turns this into an OptionError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A set of values.

    words: what is allowed, as the end of a sentence that starts with the option's name.
    parse: returns the normalized value, raises Unfit.
    dump: returns the normalized value as plain JSON.
    cli_type, multiple: one flag's Python type; `multiple` flags can be repeated. metavar: its placeholder.
    separator: parts several values in one use of a `multiple` flag; empty if values can hold any character.
    json_words: `words` for values written as JSON; empty if `words` holds there as well.
    schema: the JSON schema of accepted JSON values, null aside.
    parse_stored: reads a value of a stored config, in which token ids can be negative; None if there are no token ids.
    """

    words: str
    parse: Callable[[Any], Any]
    cli_type: CliType
    metavar: str
    schema: Mapping[str, Any]
    multiple: bool = False
    separator: str = ""
    json_words: str = ""
    dump: Callable[[Any], Any] = lambda value: value
    parse_stored: Callable[[Any], Any] | None = None


def whole(value: Any) -> int:
    """Return the value as an int. Raises Unfit."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise Unfit
    return int(value)


def finite(value: Any) -> float:
    """Return the value as a float. Raises Unfit."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise Unfit
    try:
        number = float(value)
    except OverflowError:
        raise Unfit from None
    if not math.isfinite(number) or abs(number) > GREATEST:
        raise Unfit
    return number


def items(value: Any) -> Iterable[Any]:
    """Return what to iterate over; sets in ascending order. Raises Unfit."""
    if not isinstance(value, list | tuple | set | frozenset | range):
        raise Unfit
    if not isinstance(value, set | frozenset):
        return value
    try:
        return sorted(value)
    except TypeError:
        raise Unfit from None


def as_lists(value: Any) -> Any:
    """Return nested tuples as nested lists, as JSON has them."""
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


def integer(low: int | None = None) -> Kind:
    """Whole numbers of at least `low`. Booleans are no numbers."""

    def parse(value: Any) -> int:
        number = whole(value)
        if low is not None and number < low:
            raise Unfit
        return number

    schema: dict[str, Any] = {"type": "integer"} | ({} if low is None else {"minimum": low})
    words = "must be an integer" if low is None else f"must be an integer of at least {low}"
    return Kind(words=words, parse=parse, cli_type="int", metavar="INT", schema=schema)


def real(low: float | None = None, high: float | None = None, *, brackets: str = "[]", divides: bool = False) -> Kind:
    """Numbers between `low` and `high`, by default -GREATEST and GREATEST.

    brackets: the interval's own: "[", "(" and "]", ")". divides: whether scores are divided by it; it is then 0, if
    that is allowed, or at least LEAST.
    """
    above, below = brackets[0] == "(", brackets[1] == ")"

    def parse(value: Any) -> float:
        number = finite(value)
        if low is not None and (number < low or (above and number == low)):
            raise Unfit
        if high is not None and (number > high or (below and number == high)):
            raise Unfit
        if divides and 0 < number < LEAST:
            raise Unfit
        return number

    schema: dict[str, Any] = {"type": "number"}
    if low is not None:
        schema["exclusiveMinimum" if above else "minimum"] = low
    if high is not None:
        schema["exclusiveMaximum" if below else "maximum"] = high
    words = _interval(LEAST if divides else low, high, "[]" if divides else brackets)
    if divides and low == 0 and not above:
        words = words.replace("must be", "must be 0 or")
    return Kind(words=words, parse=parse, cli_type="float", metavar="FLOAT", schema=schema)


def _interval(low: float | None, high: float | None, brackets: str) -> str:
    if high is None:
        brackets = f"{brackets[0]}]"
    ends = (-GREATEST if low is None else low, GREATEST if high is None else high)
    return f"must be in {brackets[0]}{', '.join(map(_short, ends))}{brackets[1]}"


def _short(number: float) -> str:
    """Return the number in as few characters as Python reads it from."""
    return f"{number:g}".replace("e+", "e")


def flag() -> Kind:
    """True or False."""

    def parse(value: Any) -> bool:
        if not isinstance(value, bool):
            raise Unfit
        return value

    schema = {"type": "boolean"}
    json_words = "must be true or false"
    return Kind(
        words="must be True or False", parse=parse, cli_type="bool", metavar="", schema=schema, json_words=json_words
    )


def choice(*values: str | bool) -> Kind:
    """One of a few words; booleans may be among them."""

    def parse(value: Any) -> Any:
        # 1 == True in Python, so the type is compared as well.
        if not any(type(value) is type(one) and value == one for one in values):
            raise Unfit
        return value

    words = "must be one of " + ", ".join(repr(value) for value in values)
    texts = [str(value).lower() if isinstance(value, bool) else value for value in values]
    cli_type: CliType = "json" if any(isinstance(value, bool) for value in values) else "str"
    schema = {"enum": list(values)}
    json_words = "must be one of " + ", ".join(texts)
    return Kind(
        words=words, parse=parse, cli_type=cli_type, metavar="|".join(texts), schema=schema, json_words=json_words
    )


def strategy_name() -> Kind:
    """The name of a strategy; the option table puts a `choice` of all strategies in its place."""
    return choice()


def texts() -> Kind:
    """One string or several, none of them empty --> tuple[str, ...]"""

    def parse(value: Any) -> tuple[str, ...]:
        strings = tuple([value] if isinstance(value, str) else items(value))
        if not all(isinstance(string, str) and string for string in strings):
            raise Unfit
        return strings

    one = {"type": "string", "minLength": 1}
    schema = {"anyOf": [one, {"type": "array", "items": one}]}
    words = "must be a string or a list of strings, none of them empty"
    return Kind(words=words, parse=parse, cli_type="str", metavar="TEXT", schema=schema, multiple=True, dump=as_lists)


def wordings() -> Kind:
    """Strings, or lists of alternatives to one --> tuple[str | tuple[str, ...], ...]"""

    def parse_text(value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise Unfit
        return value

    def parse_one(value: Any) -> str | tuple[str, ...]:
        if isinstance(value, str):
            return parse_text(value)
        several = tuple(parse_text(one) for one in items(value))
        if not several:
            raise Unfit
        return several

    def parse(value: Any) -> tuple[str | tuple[str, ...], ...]:
        return (parse_text(value),) if isinstance(value, str) else tuple(parse_one(one) for one in items(value))

    one = {"type": "string", "minLength": 1}
    several = {"type": "array", "items": one, "minItems": 1}
    schema = {"anyOf": [one, {"type": "array", "items": {"anyOf": [one, several]}}]}
    words = "must be a text, or a list of texts and of lists of alternative texts, none of them empty"
    return Kind(
        words=words,
        parse=parse,
        cli_type="str",
        metavar="TEXT,...",
        schema=schema,
        multiple=True,
        separator=",",
        dump=as_lists,
    )


def text_or_tokens() -> Kind:
    """A text, or token ids, at least one --> str | tuple[int, ...]"""

    def parse(value: Any) -> str | tuple[int, ...]:
        if isinstance(value, str):
            return value
        tokens = tuple(whole(token) for token in items(value))
        if not tokens or min(tokens) < 0:
            raise Unfit
        return tokens

    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    schema = {"anyOf": [{"type": "string"}, ids]}
    words = "must be a text, or a list of token ids"
    return Kind(words=words, parse=parse, cli_type="json", metavar="TEXT", schema=schema, dump=as_lists)


def names(allowed: tuple[str, ...]) -> Kind:
    """Some of the allowed names, in any order, each at most once --> tuple[str, ...]"""

    def parse(value: Any) -> tuple[str, ...]:
        given = tuple(items(value))
        if not all(isinstance(name, str) and name in allowed for name in given) or len(set(given)) < len(given):
            raise Unfit
        return given

    words = "must be a list of names, each at most once, out of " + ", ".join(allowed)
    schema = {"type": "array", "items": {"enum": list(allowed)}, "uniqueItems": True}
    return Kind(
        words=words,
        parse=parse,
        cli_type="str",
        metavar="NAME,...",
        schema=schema,
        multiple=True,
        separator=",",
        dump=as_lists,
    )


def seeds() -> Kind:
    """Any integer, or a list with one for each prompt --> int | tuple[int, ...]"""

    def parse(value: Any) -> int | tuple[int, ...]:
        if isinstance(value, Integral):
            return whole(value)
        several = tuple(whole(one) for one in items(value))
        if not several:
            raise Unfit
        return several

    schema = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
    words = "must be an integer or a list of integers, one for each prompt"
    return Kind(words=words, parse=parse, cli_type="int", metavar="INT", schema=schema, dump=as_lists)


def layers() -> Kind:
    """ "low", "high", or layer numbers --> str | tuple[int, ...]"""

    def parse(value: Any) -> str | tuple[int, ...]:
        if isinstance(value, str) and value in ("low", "high"):
            return value
        numbers = tuple(whole(one) for one in items(value))
        if not numbers or min(numbers) < 0:
            raise Unfit
        return numbers

    numbered = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    schema = {"anyOf": [{"enum": ["low", "high"]}, numbered]}
    return Kind(
        words="must be 'low', 'high' or a list of layer numbers",
        json_words="must be low, high or a list of layer numbers such as [0, 2]",
        parse=parse,
        cli_type="json",
        metavar="low|high|JSON",
        schema=schema,
        dump=as_lists,
    )

"""Kinds of option values: validation, normalization, the range in words, the command-line type and the JSON schema.

Owns: checking and normalizing one value; `token_kinds` does this for token ids. Does not know: option names, defaults,
or other options. Normalized values are immutable, so that configs can be shared, compared and hashed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Final, Literal, TypeAlias

CliType: TypeAlias = Literal["bool", "int", "float", "str", "json"]


GREATEST: Final = 1e18
"""Largest absolute value of a number. Scores are float32 (largest value 3e38), and no combination of options must turn
them into inf or NaN."""

LEAST: Final = 1e-18
"""Smallest divisor of scores, for the same reason."""


class Unfit(Exception):
    """The value is not of this kind. `Option.check` turns this into an OptionError with the option's name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of value: the accepted values and their forms.

    words: the accepted values in words; ends a sentence that starts with the option's name.
    parse: returns the normalized value; raises Unfit.
    cli_type: Python type of the flag. metavar: placeholder of the flag's value in `--help`.
    schema: JSON schema of the accepted JSON values, without null.
    multiple: True if the flag can be repeated.
    separator: separates several values in one use of a `multiple` flag; empty if values can contain any character.
    json_words: `words` for values written as JSON; empty if they are the same.
    dump: returns a normalized value as plain JSON.
    parse_stored: parses a value of a stored config, which can contain negative token ids. None for kinds without token
        ids.
    reads_file: True if the command line accepts the name of a file with the value.
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
    reads_file: bool = False


def whole(value: Any) -> int:
    """Return the value as an int. Raises: Unfit: if it is not an integer."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise Unfit
    return int(value)


def finite(value: Any) -> float:
    """Return the value as a float. Raises: Unfit: if it is not a number or too large."""
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
    """Return an iterable of the items; sets in ascending order. Raises: Unfit: if the value is not a collection."""
    if not isinstance(value, list | tuple | set | frozenset | range):
        raise Unfit
    if not isinstance(value, set | frozenset):
        return value
    try:
        return sorted(value)
    except TypeError:
        raise Unfit from None


def as_lists(value: Any) -> Any:
    """Return nested tuples as nested lists, for JSON."""
    return [as_lists(item) for item in value] if isinstance(value, tuple) else value


def integer(low: int | None = None) -> Kind:
    """Integers of at least `low`, without booleans; None for no bound --> int"""

    def parse(value: Any) -> int:
        number = whole(value)
        if low is not None and number < low:
            raise Unfit
        return number

    schema: dict[str, Any] = {"type": "integer"} | ({} if low is None else {"minimum": low})
    words = "must be an integer" if low is None else f"must be an integer of at least {low}"
    return Kind(words=words, parse=parse, cli_type="int", metavar="INT", schema=schema)


def real(low: float | None = None, high: float | None = None, *, brackets: str = "[]", divides: bool = False) -> Kind:
    """Numbers in an interval --> float

    Args:
        low: lower end; None for -GREATEST.
        high: upper end; None for GREATEST.
        brackets: "[" or "(", then "]" or ")". A square bracket includes that end.
        divides: True if scores are divided by the number; it must then be 0, if allowed, or at least LEAST.
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
    """Return the shortest text that Python reads as the number."""
    return f"{number:g}".replace("e+", "e")


def flag() -> Kind:
    """True or False --> bool"""

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
    """One of the given strings or booleans --> str | bool"""

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
    """The name of a strategy. The option table replaces this kind by a `choice` of all strategies."""
    return choice()


def texts() -> Kind:
    """A string or a list of strings, each of at least one character --> tuple[str, ...]"""

    def parse(value: Any) -> tuple[str, ...]:
        strings = tuple([value] if isinstance(value, str) else items(value))
        if not all(isinstance(string, str) and string for string in strings):
            raise Unfit
        return strings

    one = {"type": "string", "minLength": 1}
    schema = {"anyOf": [one, {"type": "array", "items": one}]}
    words = "must be a non-empty string or a list of non-empty strings"
    return Kind(words=words, parse=parse, cli_type="str", metavar="TEXT", schema=schema, multiple=True, dump=as_lists)


def wordings() -> Kind:
    """Strings and lists of alternative strings --> tuple[str | tuple[str, ...], ...]"""

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
    words = "must be a non-empty text, or a list of non-empty texts and of lists of alternative texts"
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
    """A text, or a list of at least one token id --> str | tuple[int, ...]"""

    def parse(value: Any) -> str | tuple[int, ...]:
        if isinstance(value, str):
            return value
        tokens = tuple(whole(token) for token in items(value))
        if not tokens or min(tokens) < 0:
            raise Unfit
        return tokens

    ids = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
    schema = {"anyOf": [{"type": "string"}, ids]}
    words = "must be a text or a list of token ids"
    return Kind(words=words, parse=parse, cli_type="json", metavar="TEXT", schema=schema, dump=as_lists)


def names(allowed: tuple[str, ...]) -> Kind:
    """A list of allowed names, in any order, without repetition --> tuple[str, ...]"""

    def parse(value: Any) -> tuple[str, ...]:
        given = tuple(items(value))
        if not all(isinstance(name, str) and name in allowed for name in given) or len(set(given)) < len(given):
            raise Unfit
        return given

    words = "must be a list of different names out of " + ", ".join(allowed)
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
    """An integer, or a list with one integer per prompt --> int | tuple[int, ...]"""

    def parse(value: Any) -> int | tuple[int, ...]:
        if isinstance(value, Integral):
            return whole(value)
        several = tuple(whole(one) for one in items(value))
        if not several:
            raise Unfit
        return several

    schema = {"anyOf": [{"type": "integer"}, {"type": "array", "items": {"type": "integer"}, "minItems": 1}]}
    words = "must be an integer or a list of integers, one per prompt"
    return Kind(words=words, parse=parse, cli_type="int", metavar="INT", schema=schema, dump=as_lists)


def layers() -> Kind:
    """Layers: "low", "high", or layer numbers from 0 --> str | tuple[int, ...]"""

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

"""Kinds of option values with token ids.

Ids of callers are at least 0. A stored config can contain negative ids, which stand for "no token".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from numbers import Integral
from typing import Any, TypeAlias

from unspool.options.kinds import Kind, Unfit, as_lists, finite, integer, items, whole

TokenIds: TypeAlias = tuple[int, ...]
Template: TypeAlias = tuple[int | None, ...]
"""Token ids; None is a gap of any length."""


class TokenBiases(Mapping[TokenIds, float]):
    """An immutable mapping, token sequence --> bias added to its score. Equal to a dict with the same items."""

    __slots__ = ("_biases",)

    def __init__(self, biases: Mapping[TokenIds, float]) -> None:
        self._biases = dict(biases)

    def __getitem__(self, sequence: TokenIds) -> float:
        return self._biases[sequence]

    def __iter__(self) -> Iterator[TokenIds]:
        return iter(self._biases)

    def __len__(self) -> int:
        return len(self._biases)

    def __hash__(self) -> int:
        return hash(frozenset(self._biases.items()))

    def __repr__(self) -> str:
        return repr(self._biases)


_TOKEN_SCHEMA = {"type": "integer", "minimum": 0}
_SEQUENCE_SCHEMA = {"type": "array", "items": _TOKEN_SCHEMA, "minItems": 1}


def _token(value: Any) -> int:
    token = whole(value)
    if token < 0:
        raise Unfit
    return token


def _sequence(value: Any, read: Callable[[Any], int] = _token) -> TokenIds:
    tokens = tuple(read(token) for token in items(value))
    if not tokens:
        raise Unfit
    return tokens


def token() -> Kind:
    """One token id --> int"""
    return replace(integer(0), words="must be a token id, an integer of at least 0", parse=_token, parse_stored=whole)


def tokens() -> Kind:
    """One token id or a list of token ids --> tuple[int, ...]"""

    def parse(value: Any, read: Callable[[Any], int] = _token) -> TokenIds:
        return tuple(read(one) for one in ([value] if isinstance(value, Integral) else items(value)))

    schema = {"anyOf": [_TOKEN_SCHEMA, {"type": "array", "items": _TOKEN_SCHEMA}]}
    words = "must be a token id or a list of token ids, integers of at least 0"
    return Kind(
        words=words,
        parse=parse,
        parse_stored=partial(parse, read=whole),
        cli_type="int",
        metavar="ID,...",
        schema=schema,
        multiple=True,
        separator=",",
        dump=as_lists,
    )


def sequences() -> Kind:
    """A list of token sequences --> tuple[tuple[int, ...], ...]"""

    def parse(value: Any, read: Callable[[Any], int] = _token) -> tuple[TokenIds, ...]:
        return tuple(_sequence(one, read) for one in items(value))

    schema = {"type": "array", "items": _SEQUENCE_SCHEMA}
    words = "must be a list of non-empty token sequences, such as [[5], [7, 9]]"
    return Kind(
        words=words,
        parse=parse,
        parse_stored=partial(parse, read=whole),
        cli_type="json",
        metavar="JSON",
        schema=schema,
        dump=as_lists,
    )


def forced_words() -> Kind:
    """Token sequences with gaps (None), and lists of alternative sequences --> tuple of sequences or of alternatives"""

    def parse_sequence(value: Any, read: Callable[[Any], int]) -> Template:
        tokens = tuple(None if token is None else read(token) for token in items(value))
        if not tokens or tokens[0] is None or tokens[-1] is None:
            raise Unfit
        return tokens

    def parse_word(value: Any, read: Callable[[Any], int]) -> Template | tuple[Template, ...]:
        word = tuple(items(value))
        if not word:
            raise Unfit
        if isinstance(word[0], Integral):
            return parse_sequence(word, read)
        return tuple(parse_sequence(one, read) for one in word)

    def parse(value: Any, read: Callable[[Any], int] = _token) -> tuple[Template | tuple[Template, ...], ...]:
        return tuple(parse_word(one, read) for one in items(value))

    template = {"type": "array", "items": {"anyOf": [_TOKEN_SCHEMA, {"type": "null"}]}, "minItems": 1}
    word = {"anyOf": [template, {"type": "array", "items": template, "minItems": 1}]}
    words = (
        "must be a list of token sequences, or of lists of alternative sequences; None stands for a gap between two "
        "tokens of a sequence"
    )
    json_words = words.replace("None", "null") + ", as in [[5, null, 7], [[1], [2]]]"
    schema = {"type": "array", "items": word}
    return Kind(
        words=words,
        parse=parse,
        parse_stored=partial(parse, read=whole),
        cli_type="json",
        metavar="JSON",
        schema=schema,
        json_words=json_words,
        dump=as_lists,
    )


def breakers() -> Kind:
    """A list of strings, token ids and token sequences --> tuple[str | int | tuple[int, ...], ...]"""

    def parse_one(value: Any, read: Callable[[Any], int]) -> str | int | TokenIds:
        if isinstance(value, str) and value:
            return value
        return read(value) if isinstance(value, Integral) else _sequence(value, read)

    def parse(value: Any, read: Callable[[Any], int] = _token) -> tuple[str | int | TokenIds, ...]:
        return tuple(parse_one(one, read) for one in items(value))

    breaker = {"anyOf": [{"type": "string", "minLength": 1}, _TOKEN_SCHEMA, _SEQUENCE_SCHEMA]}
    schema = {"type": "array", "items": breaker}
    words = "must be a list of non-empty strings, token ids and non-empty token sequences"
    return Kind(
        words=words,
        parse=parse,
        parse_stored=partial(parse, read=whole),
        cli_type="str",
        metavar="TEXT",
        schema=schema,
        multiple=True,
        dump=as_lists,
    )


def biases() -> Kind:
    """Token sequences, each with a finite bias --> TokenBiases

    Accepts a mapping, {(5, 7): -2.0}, or pairs, [[[5, 7], -2.0]]. The keys of a mapping can be text, "(5, 7)", as in a
    JSON file.
    """

    def parse_key(key: Any, read: Callable[[Any], int]) -> TokenIds:
        if isinstance(key, str):
            if not re.fullmatch(r"[\[(]?\s*\d+(\s*,\s*\d+)*\s*,?\s*[\])]?", key.strip()):
                raise Unfit
            return tuple(int(digits) for digits in re.findall(r"\d+", key))
        return _sequence(key, read)

    def parse(value: Any, read: Callable[[Any], int] = _token) -> TokenBiases:
        pairs = [tuple(items(pair)) for pair in (value.items() if isinstance(value, Mapping) else items(value))]
        if any(len(pair) != 2 for pair in pairs):
            raise Unfit
        found = {parse_key(key, read): finite(bias) for key, bias in pairs}
        if len(found) < len(pairs):
            raise Unfit
        return TokenBiases(found)

    def dump(value: TokenBiases) -> list[Any]:
        return [[list(sequence), bias] for sequence, bias in value.items()]

    pair = {"type": "array", "prefixItems": [_SEQUENCE_SCHEMA, {"type": "number"}], "minItems": 2, "maxItems": 2}
    words = "must map different token sequences to numbers in [-1e18, 1e18]: {(5, 7): -2.0} or [[[5, 7], -2.0]]"
    json_words = 'must map different token sequences to numbers in [-1e18, 1e18]: [[[5, 7], -2.0]] or {"5, 7": -2.0}'
    schema = {"type": "array", "items": pair}
    return Kind(
        words=words,
        parse=parse,
        parse_stored=partial(parse, read=whole),
        cli_type="json",
        metavar="JSON",
        schema=schema,
        json_words=json_words,
        dump=dump,
    )


def decay() -> Kind:
    """A pair of a start, in tokens, and a factor --> tuple[int, float]"""

    def parse(value: Any) -> tuple[int, float]:
        pair = tuple(items(value))
        if len(pair) != 2 or finite(pair[1]) <= 0:
            raise Unfit
        return _token(pair[0]), finite(pair[1])

    parts = [_TOKEN_SCHEMA, {"type": "number", "exclusiveMinimum": 0}]
    schema = {"type": "array", "prefixItems": parts, "minItems": 2, "maxItems": 2}
    numbers = "an integer of at least 0 and a number in (0, 1e18]"
    return Kind(
        words=f"must be a pair (start, factor): {numbers}",
        json_words=f"must be a pair [start, factor]: {numbers}",
        parse=parse,
        cli_type="json",
        metavar="JSON",
        schema=schema,
        dump=as_lists,
    )

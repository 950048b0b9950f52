"""Adapters (wrappers) for objects that follow a protocol without its base class; they add the optional members.

Only this module looks for optional members by name, including the names of earlier versions.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from unspool.errors import OptionError
from unspool.protocols import Criterion, Runtime, Strategy, WrappedStrategy
from unspool.types import Feed, ModelInfo, Rows, Seq

_RUNTIME_METHODS = ("forward", "fork", "truncate", "release")
_STRATEGY_ALIASES = {"shows_tentative": "leads", "allows_empty_rows": "bears_dead_ends"}
"""Abilities of strategies and their names in version 0.1."""

_MISSING: Any = object()


def as_strategy(given: Any) -> Strategy:
    """Return the object itself if it is a Strategy, else an adapter around it."""
    return given if isinstance(given, Strategy) else AdaptedStrategy(given)


def as_criterion(given: Any) -> Criterion:
    """Return the object itself if it is a Criterion, else an adapter around it."""
    return given if isinstance(given, Criterion) else AdaptedCriterion(given)


def is_runtime(given: Any) -> bool:
    """Return True if the object has all required members of a Runtime."""
    return isinstance(given, Runtime) or all(hasattr(given, name) for name in ("info", *_RUNTIME_METHODS))


def as_runtime(given: Any) -> Runtime:
    """Return the object itself if it is a Runtime, else an adapter around it."""
    return given if isinstance(given, Runtime) else AdaptedRuntime(given)


def _first_of(given: Any, *names: str) -> Any:
    """Return the first of these attributes that the object has, else _MISSING."""
    return next((getattr(given, name) for name in names if hasattr(given, name)), _MISSING)


def _takes(method: Any, name: str) -> bool:
    """Return True if a method takes this argument by name."""
    parameters = inspect.signature(method).parameters.values()
    return any(each.name == name or each.kind is each.VAR_KEYWORD for each in parameters)


class AdaptedStrategy(WrappedStrategy):
    """Adapter for a strategy without the base class `Strategy`."""

    def __init__(self, given: Any) -> None:
        self.inner = given
        for ability in Strategy.__annotations__:
            value = _first_of(given, ability, _STRATEGY_ALIASES.get(ability, ability))
            if value is not _MISSING:
                setattr(self, ability, value)

    def check(self, context: Any) -> None:
        """Call the object's `check`, if it has one."""
        if hasattr(self.inner, "check"):
            self.inner.check(context)


class AdaptedCriterion(Criterion):
    """Adapter for a criterion without the base class `Criterion`."""

    def __init__(self, given: Any) -> None:
        self._given, self.name = given, given.name
        self._prepare = _first_of(given, "prepare", "foresee")
        self.prepares = self._prepare is not _MISSING

    def __eq__(self, other: object) -> bool:
        return isinstance(other, AdaptedCriterion) and other._given is self._given

    def __hash__(self) -> int:
        return id(self._given)

    def start(self, context: Any) -> Any:
        return self._given.start(context)

    def advance(self, state: Any, token: int) -> Any:
        return self._given.advance(state, token)

    def ends(self, state: Any, token: int) -> bool:
        return bool(self._given.ends(state, token))

    def prepare(self, pairs: Sequence[tuple[Any, int]]) -> None:
        if self.prepares:
            self._prepare(pairs)


class AdaptedRuntime(Runtime):
    """Adapter for a runtime without the base class `Runtime`."""

    def __init__(self, given: Any) -> None:
        self._given = given
        self._match_prefix = _first_of(given, "match_prefix", "recall")
        can_match = self._match_prefix is not _MISSING
        self._takes_salt = can_match and _takes(self._match_prefix, "salt")
        self.has_prefix_caching = can_match and bool(getattr(given, "has_prefix_caching", True))
        self.source = getattr(given, "source", None)
        self.in_place = bool(getattr(given, "in_place", False))

    @property
    def info(self) -> ModelInfo:
        info: ModelInfo = self._given.info
        return info

    @info.setter
    def info(self, info: ModelInfo) -> None:
        self._given.info = info

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        rows: Rows = self._given.forward(feeds)
        return rows

    def fork(self, seq: Seq, child: Seq) -> None:
        self._given.fork(seq, child)

    def truncate(self, seq: Seq, keep: int) -> int:
        return int(self._given.truncate(seq, keep))

    def release(self, seq: Seq) -> None:
        self._given.release(seq)

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        """See Runtime.match_prefix. A method of earlier versions lacks `salt`.

        Raises:
            OptionError: if there is a salt, and the object's method cannot take it.
        """
        if not self.has_prefix_caching:
            return 0
        if self._takes_salt:
            return int(self._match_prefix(seq, tokens, least=least, invariant=invariant, salt=salt))
        if salt:
            hint = "add the argument `salt` to its `match_prefix`, or turn its prefix caching off"
            raise OptionError("cache_salt", salt, f"cannot separate the prefix cache of {self.info.name}", hint)
        return int(self._match_prefix(seq, tokens, least=least, invariant=invariant))

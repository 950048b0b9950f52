"""The registry of strategies: those of this folder, and those of installed packages.

A class is registered if it is a `Strategy` with its own `facts` in a module of `unspool.strategies`. An installed
package registers a class by an entry point in the group "unspool.strategies".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pkgutil import iter_modules
from types import MappingProxyType
from typing import Final

from unspool.protocols import Strategy

GROUP: Final = "unspool.strategies"


def _built_in() -> Iterator[Strategy]:
    """Yield one object per strategy class that a module of this folder defines with its own `facts`."""
    package = import_module("unspool.strategies")
    for module in iter_modules(package.__path__, "unspool.strategies."):
        if module.name == __name__:
            continue
        for value in vars(import_module(module.name)).values():
            defined_here = isinstance(value, type) and value.__module__ == module.name
            if defined_here and issubclass(value, Strategy) and "facts" in vars(value):
                yield value()


def _offered(entry: EntryPoint) -> Strategy | None:
    """Return the strategy of an installed package; None, after a warning, if it cannot be used."""
    try:
        strategy = entry.load()()
        if not isinstance(strategy, Strategy):
            raise TypeError(f"{entry.value} is not a subclass of unspool.Strategy")
        if not strategy.name:
            raise TypeError(f"{entry.value} must set `name`")
    except Exception as error:
        warnings.warn(f"the strategy {entry.name!r} of {entry.value} is left out: {error}", stacklevel=2)
        return None
    return strategy


def _collect() -> Mapping[str, Strategy]:
    """Return all strategies by name, ordered by `facts.position`."""
    found = {strategy.name: strategy for strategy in _built_in()}
    for entry in entry_points(group=GROUP):
        strategy = _offered(entry)
        if strategy is None:
            continue
        if strategy.name in found:
            message = f"the strategy {strategy.name!r} of {entry.value} is left out: the name is taken"
            warnings.warn(message, stacklevel=2)
            continue
        found[strategy.name] = strategy
    ordered = sorted(found.values(), key=lambda strategy: (strategy.facts.position, strategy.name))
    return MappingProxyType({strategy.name: strategy for strategy in ordered})


STRATEGIES: Final[Mapping[str, Strategy]] = _collect()
"""The strategies that `GenerationConfig.strategy` can name."""

"""Forms of arguments that transformers accepts and the option table does not: numbers, tensors and None.

Owns: conversions without loss. Does not know: which options are read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from unspool.config import OPTIONS, option_status
from unspool.config.vocabulary import any_ids
from unspool.errors import OptionError


def lenient(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a call in forms that the option table accepts.

    As in transformers, an unknown argument is left out if it is None. A value that its option refuses is converted if
    this loses nothing: 1 to True, 6.0 to 6, a tensor to numbers. All other values stay, so that the table refuses them.
    """
    given = {name: value for name, value in options.items() if value is not None or option_status(name) != "unknown"}
    return {name: _accepted(name, value) if name in OPTIONS else value for name, value in given.items()}


def _accepted(name: str, value: Any) -> Any:
    """Return the first form of a value that its option accepts, else the value itself."""
    for form in _forms(value):
        try:
            OPTIONS[name].check(form)
        except OptionError:
            if any_ids(name, form) is None:
                continue
        return form
    return value


def _forms(value: Any) -> Iterator[Any]:
    """Yield a value, then its equal forms of other types."""
    yield value
    if hasattr(value, "tolist"):  # tensors, arrays and their numbers
        value = value.tolist()
        yield value
    if isinstance(value, float) and value.is_integer():
        yield int(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and value in (0, 1):
        yield bool(value)

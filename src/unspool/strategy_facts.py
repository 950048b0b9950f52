"""StrategyFacts: everything the option table, the command line and `compare` need to know about one strategy.

Imports nothing of ours, so that the option table can be derived from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Values: TypeAlias = Mapping[str, Any]
"""The value of every option by name."""

ASSISTANT = "assistant_model"
"""The name of the draft model among options. It is an object, so the option table does not have it."""


def always(values: Values, assistant: bool) -> bool:
    """Return True: the strategy needs no option to be on."""
    return True


def never(values: Values, do_sample: bool, assistant: bool) -> bool:
    """Return False: no combination of options selects the strategy; it must be named."""
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyFacts:
    """Facts about one strategy. Every table about strategies derives from them.

    Args:
        samples: "always" if it draws, "never" if it takes the best tokens, "optional" if `do_sample` decides.
        reads: options that it reads besides the options for all strategies and, if it samples, the sampling options.
            `ASSISTANT` stands for the draft model.
        selected_by: options that lead to it, the most telling first; error messages name the first of them that is on.
        selects: called with (values, do_sample, whether a draft model is given); returns True if transformers' rules
            lead to this strategy when no strategy is named.
        precedence: strategies are asked in ascending order whether the options select them.
        needs: the options that it cannot work without, in words; empty for none.
        is_met: called with (values, whether a draft model is given); returns True if `needs` is met.
        sampling_twin: the strategy that `do_sample=True` leads to instead; empty for none.
        line_up: entries of `compare`: name --> options that differ from the defaults. None for one entry without any.
        position: entries of `compare` and tables in the docs come in ascending order.
    """

    samples: Literal["always", "never", "optional"] = "never"
    reads: frozenset[str] = frozenset()
    selected_by: tuple[str, ...] = ()
    selects: Callable[[Values, bool, bool], bool] = never
    precedence: int = 1000
    needs: str = ""
    is_met: Callable[[Values, bool], bool] = always
    sampling_twin: str = ""
    line_up: Mapping[str, Values] | None = field(default=None)
    position: int = 1000

"""Choice of the strategy from the options. All tables derive from the facts of the strategies.

Owns: the rules of the choice. Does not know: layers, defaults, or how a strategy works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from unspool.strategies.registry import STRATEGIES as _REGISTRY
from unspool.strategy_facts import ASSISTANT, StrategyFacts

_FACTS: Final[Mapping[str, StrategyFacts]] = {name: strategy.facts for name, strategy in _REGISTRY.items()}

STRATEGIES: Final[tuple[str, ...]] = tuple(_FACTS)
"""The names of all strategies, in the order of the docs."""

SAMPLING: Final = frozenset(name for name, facts in _FACTS.items() if facts.samples != "never")
EITHER: Final = frozenset(name for name, facts in _FACTS.items() if facts.samples == "optional")
"""Strategies that sample if `do_sample` is True and take the best token otherwise."""
ALWAYS_SAMPLING: Final = SAMPLING - EITHER
NEVER_SAMPLING: Final = frozenset(_FACTS) - SAMPLING
BEAMS: Final = frozenset(name for name, facts in _FACTS.items() if "length_penalty" in facts.reads)
"""Strategies that rank finished beams by length-normalized scores."""


def readers_of(option: str, *, sampling: bool) -> frozenset[str]:
    """Return the strategies that read an option. Not for options with `read_by="all"`.

    Args:
        option: its name.
        sampling: True if every strategy that samples reads it.
    """
    named = frozenset(name for name, facts in _FACTS.items() if option in facts.reads)
    return named | SAMPLING if sampling else named


def unknown_reads(options: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return, per strategy, the names in its `reads` that are not among these options."""
    missing = {name: facts.reads - options - {ASSISTANT} for name, facts in _FACTS.items()}
    return {name: names for name, names in missing.items() if names}


def selectors(strategy: str) -> tuple[str, ...]:
    """Return the options that select the strategy, most specific first."""
    return _FACTS[strategy].selected_by


def needs(strategy: str) -> str:
    """Return the options that the strategy requires, in words."""
    return _FACTS[strategy].needs


def has_sampling_twin(strategy: str) -> bool:
    """Return True if `do_sample=True` selects a sampling variant of this strategy."""
    return bool(_FACTS[strategy].sampling_twin)


def reads_assistant(strategy: str) -> bool:
    """Return True if the strategy reads a draft model."""
    return ASSISTANT in _FACTS[strategy].reads


def choose_strategy(values: Mapping[str, Any], *, do_sample: bool, assistant: bool = False) -> str:
    """Return the strategy that transformers' rules would choose.

    Args:
        values: values of all options.
        do_sample: the final value; `values["do_sample"]` is ignored.
        assistant: True if a draft model is given.
    """
    ranked = sorted(_FACTS, key=lambda name: _FACTS[name].precedence)
    return next(name for name in ranked if _FACTS[name].selects(values, do_sample, assistant))


def meets_needs(strategy: str, values: Mapping[str, Any], *, assistant: bool = False) -> bool:
    """Return True if the values contain all options that the strategy requires."""
    return _FACTS[strategy].is_met(values, assistant)

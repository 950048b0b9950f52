"""Which strategy a set of options asks for, and what it needs. Every table derives from the strategies themselves.

Owns: the rules of choice. Does not know: layers, defaults, or how a strategy works.
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
"""Strategies that draw if `do_sample` is True and take the best token otherwise."""
ALWAYS_SAMPLING: Final = SAMPLING - EITHER
NEVER_SAMPLING: Final = frozenset(_FACTS) - SAMPLING
BEAMS: Final = frozenset(name for name, facts in _FACTS.items() if "length_penalty" in facts.reads)
"""Strategies that rank finished beams by length-normalized scores."""


def readers_of(option: str, *, sampling: bool) -> frozenset[str]:
    """Return the strategies that read an option which is not read by all.

    Args:
        option: its name.
        sampling: True if every strategy that samples reads it.
    """
    named = frozenset(name for name, facts in _FACTS.items() if option in facts.reads)
    return named | SAMPLING if sampling else named


def unknown_reads(options: frozenset[str]) -> dict[str, frozenset[str]]:
    """Return, per strategy, the options that it claims to read and that are not among these."""
    missing = {name: facts.reads - options - {ASSISTANT} for name, facts in _FACTS.items()}
    return {name: names for name, names in missing.items() if names}


def selectors(strategy: str) -> tuple[str, ...]:
    """Return the options that lead to the strategy, the most telling first."""
    return _FACTS[strategy].selected_by


def needs(strategy: str) -> str:
    """Return the options that the strategy cannot work without, in words."""
    return _FACTS[strategy].needs


def has_sampling_twin(strategy: str) -> bool:
    """Return True if `do_sample=True` leads to another strategy in place of this one."""
    return bool(_FACTS[strategy].sampling_twin)


def reads_assistant(strategy: str) -> bool:
    """Return True if the strategy reads a draft model."""
    return ASSISTANT in _FACTS[strategy].reads


def choose_strategy(values: Mapping[str, Any], *, do_sample: bool, assistant: bool = False) -> str:
    """Return the strategy that transformers' rules would choose.

    Args:
        values: every option's value.
        do_sample: final, whatever `values` says.
        assistant: True if a draft model is given.
    """
    ranked = sorted(_FACTS, key=lambda name: _FACTS[name].precedence)
    return next(name for name in ranked if _FACTS[name].selects(values, do_sample, assistant))


def meets_needs(strategy: str, values: Mapping[str, Any], *, assistant: bool = False) -> bool:
    """Return True if the values have all that the strategy needs."""
    return _FACTS[strategy].is_met(values, assistant)

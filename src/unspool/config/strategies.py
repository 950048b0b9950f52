"""The names of the strategies, which of them this version has, and which one a set of options asks for.

Owns: the rules of choice. Does not know: layers, defaults, or how a strategy works.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal, TypeAlias, get_args

StrategyName: TypeAlias = Literal[
    "greedy",
    "sample",
    "beam",
    "beam_sample",
    "diverse_beam",
    "constrained_beam",
    "contrastive",
    "assisted",
    "dola",
    "best_of",
    "stochastic_beam",
]

STRATEGIES: Final[tuple[str, ...]] = get_args(StrategyName)

AVAILABLE_STRATEGIES: frozenset[str] = frozenset(STRATEGIES)
"""The strategies of this version. Others may be known by name, so that options can be checked and explained."""

BEAMS: Final = frozenset({"beam", "beam_sample", "diverse_beam", "constrained_beam"})
SAMPLING: Final = frozenset({"sample", "beam_sample", "assisted", "dola", "best_of", "stochastic_beam"})
EITHER: Final = frozenset({"assisted", "dola"})
"""Strategies that draw when `do_sample` is True and take the best token otherwise."""
ALWAYS_SAMPLING: Final = SAMPLING - EITHER
NEVER_SAMPLING: Final = frozenset(STRATEGIES) - SAMPLING

SELECTED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "beam": ("num_beams",),
    "beam_sample": ("num_beams",),
    "diverse_beam": ("num_beam_groups", "num_beams"),
    "constrained_beam": ("force_words_ids", "force_words"),
    "contrastive": ("penalty_alpha",),
    "assisted": ("prompt_lookup_num_tokens",),
    "dola": ("dola_layers",),
    "best_of": ("best_of",),
    "stochastic_beam": ("num_beams",),
}
"""The options whose values lead to a strategy, the most telling first."""

NEEDS: Final[Mapping[str, str]] = {
    "sample": "do_sample=True",
    "beam": "num_beams above 1",
    "beam_sample": "num_beams above 1",
    "diverse_beam": "num_beams above 1 and num_beam_groups above 1",
    "constrained_beam": "force_words_ids (or force_words) and num_beams above 1",
    "contrastive": "penalty_alpha above 0 and top_k above 1",
    "assisted": "prompt_lookup_num_tokens or an assistant model",
    "dola": "dola_layers",
    "best_of": "best_of",
    "stochastic_beam": "num_beams above 1",
}
"""What a strategy cannot go without, in words."""


def choose_strategy(values: Mapping[str, Any], *, do_sample: bool, assistant: bool = False) -> str:
    """Return the strategy that transformers' rules would choose.

    Args:
        values: every option's value.
        do_sample: final, whatever `values` says.
        assistant: whether a draft model is given.
    """
    chosen = _base_strategy(values, do_sample)
    if chosen in ("greedy", "sample"):
        if assistant or values["prompt_lookup_num_tokens"] is not None:
            return "assisted"
        if values["best_of"] is not None and do_sample:
            return "best_of"
        if values["dola_layers"] is not None:
            return "dola"
    return chosen


def _base_strategy(values: Mapping[str, Any], do_sample: bool) -> str:
    if values["force_words_ids"] or values["force_words"]:
        return "constrained_beam"
    if values["num_beams"] > 1:
        if values["num_beam_groups"] > 1:
            return "diverse_beam"
        return "beam_sample" if do_sample else "beam"
    if do_sample:
        return "sample"
    return "contrastive" if (values["penalty_alpha"] or 0) > 0 and (values["top_k"] or 0) > 1 else "greedy"


def meets_needs(strategy: str, values: Mapping[str, Any], *, assistant: bool = False) -> bool:
    """Return whether the values have what NEEDS says."""
    beams, groups = values["num_beams"] > 1, values["num_beam_groups"] > 1
    needs: dict[str, bool] = {
        "beam": beams,
        "beam_sample": beams,
        "diverse_beam": beams and groups,
        "constrained_beam": beams and bool(values["force_words_ids"] or values["force_words"]),
        "contrastive": (values["penalty_alpha"] or 0) > 0 and (values["top_k"] or 0) > 1,
        "assisted": assistant or values["prompt_lookup_num_tokens"] is not None,
        "dola": values["dola_layers"] is not None,
        "best_of": values["best_of"] is not None,
        "stochastic_beam": beams,
    }
    return needs.get(strategy, True)

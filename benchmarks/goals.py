"""The goals for the speed on a CPU, and their comparison with the measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from benchmarks.figures import Figure, duration, figures_of, outside_forward

OUTSIDE_CASE, MOST_OUTSIDE = "gpt2-float32/greedy", 0.05


class Goal(NamedTuple):
    """A ratio that an entry of a case should reach: at least `bound` for a peer, at most `bound` for a cost."""

    case: str
    label: str
    bound: float


class Verdict(NamedTuple):
    """A goal in words, the measurement, and whether it meets the goal; None if it was not measured."""

    goal: str
    bound: str
    measured: str
    met: bool | None


GOALS = (
    Goal("gpt2-float32/greedy", "transformers", 1.3),
    Goal("gpt2-float32/greedy", "ctranslate2 float32", 1.0),
    Goal("gpt2-float32/beam-5", "transformers", 2.5),
    Goal("gpt2-float32/beam-5", "ctranslate2 float32", 1.5),
    Goal("gpt2-float32/first-token", "transformers", 1.0),
    Goal("gpt2-float32/batch-64", "transformers", 3.0),
    Goal("gpt2-bfloat16/greedy", "transformers", 1.6),
    Goal("gpt2-bfloat16/beam-5", "transformers", 2.0),
    Goal("gpt2-bfloat16/beam-step", "5 beams", 1.2),
    Goal("llama-bfloat16/greedy", "transformers", 1.6),
    Goal("llama-bfloat16/greedy", "llama.cpp f16", 1.0),
    Goal("llama-bfloat16/beam-5", "transformers", 2.0),
    Goal("llama-bfloat16/beam-5", "llama.cpp f16", 1.5),
    Goal("llama-bfloat16/beam-step", "5 beams", 1.2),
    Goal("llama-bfloat16/int8-greedy", "ctranslate2 int8", 1.3),
    Goal("llama-bfloat16/int8-greedy", "llama.cpp q8_0", 1.0),
    Goal("llama-bfloat16/int8-beam-5", "llama.cpp q8_0", 1.5),
    Goal("llama-bfloat16/int4-greedy", "llama.cpp q4_0", 0.9),
    Goal("llama-bfloat16/int4-beam-5", "llama.cpp q4_0", 1.5),
)
"""Ratios of one run, for any CPU."""


LIMITS = (Goal("start-up", "import unspool", 0.3), Goal("start-up", "load, first token", 3.0))
"""Here `bound` is a time in seconds."""


def verdicts(record: Mapping[str, Any]) -> Iterator[Verdict]:
    """Yield how each goal stands."""
    cases = {case["name"]: case for case in record["cases"]}
    for goal in GOALS:
        yield _verdict(record, goal, cases.get(goal.case))
    for limit in LIMITS:
        yield _in_time(record, limit, cases.get(limit.case))
    outside = outside_forward(record, OUTSIDE_CASE)
    yield Verdict(
        f"{OUTSIDE_CASE}: time outside of the model's forward",
        f"at most {MOST_OUTSIDE:.0%}",
        "not measured" if outside is None else f"{outside:.1%}",
        None if outside is None else outside <= MOST_OUTSIDE,
    )


def _verdict(record: Mapping[str, Any], goal: Goal, case: Mapping[str, Any] | None) -> Verdict:
    is_cost = case is not None and case["kind"] == "cost"
    figure = _figure(record, goal, case)
    found = figure.ratio if figure is not None else None
    words = f"at {'most' if is_cost else 'least'} {goal.bound:g}"
    if found is None:
        return Verdict(f"{goal.case}: {goal.label}", words, "not measured", None)
    met = found.median <= goal.bound if is_cost else found.median >= goal.bound
    return Verdict(f"{goal.case}: {goal.label}", words, f"{found.median:.2f}", met)


def _in_time(record: Mapping[str, Any], limit: Goal, case: Mapping[str, Any] | None) -> Verdict:
    figure = _figure(record, limit, case)
    measured = "not measured" if figure is None else duration(figure.typical)
    met = None if figure is None else figure.typical <= limit.bound
    return Verdict(f"{limit.case}: {limit.label}", f"at most {limit.bound:g} s", measured, met)


def _figure(record: Mapping[str, Any], goal: Goal, case: Mapping[str, Any] | None) -> Figure | None:
    found = figures_of(record, case) if case is not None else ()
    return next((figure for figure in found if figure.label == goal.label), None)

"""From a record to figures: speeds, ratios, shares of the bandwidth."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.ratios import Ratio, ratio
from benchmarks.work import Measure

MEASURE_TITLES: dict[Measure, str] = {"whole": "", "first": "to the first token", "rest": "each token after it"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """The result of one entry of a case, by one measure.

    seconds: one value a round. ratio: how many times as long it took as the case's first entry, pair by pair; None for
    that entry itself. share: of the machine's bandwidth, for reading the weights as often as it did in the median of
    those seconds; None if they were not counted. tokens: how many were written in those seconds.
    """

    case: Mapping[str, Any]
    entry: Mapping[str, Any]
    measure: Measure
    seconds: tuple[float, ...]
    tokens: int
    ratio: Ratio | None
    share: float | None

    @property
    def title(self) -> str:
        """The case in words, and the measure."""
        measure = MEASURE_TITLES[self.measure]
        return str(self.case["title"]) + (f": {measure}" if measure else "")

    @property
    def label(self) -> str:
        return str(self.entry["label"])

    @property
    def typical(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def speed(self) -> str:
        """The speed in words: a time for a single token, else tokens per second."""
        if self.tokens == 1 and self.measure != "rest":
            return duration(self.typical)
        return f"{self.tokens / self.typical:.1f} tokens/s"


def checkpoint_title(record: Mapping[str, Any], name: str) -> str:
    """Return a checkpoint in words."""
    facts = record["checkpoints"].get(name)
    return str(facts["title"]) if facts else "the embedded model"


def duration(seconds: float) -> str:
    """Return seconds in words, in a fitting unit."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def figures(record: Mapping[str, Any], kind: str) -> Iterator[Figure]:
    """Yield the figures of all cases of a kind, case by case, measure by measure, entry by entry."""
    for case in record["cases"]:
        if case["kind"] == kind:
            yield from figures_of(record, case)


def figures_of(record: Mapping[str, Any], case: Mapping[str, Any]) -> Iterator[Figure]:
    """Yield the figures of a case; entries without a run are omitted."""
    first = case["entries"][0]
    for measure in case["measures"]:
        for entry in case["entries"]:
            seconds = _seconds(entry, measure)
            if seconds:
                yield Figure(
                    case=case,
                    entry=entry,
                    measure=measure,
                    seconds=seconds,
                    tokens=entry["prompts"] * entry["new_tokens"] if measure == "whole" else 1,
                    ratio=ratio(_seconds(first, measure), seconds) if entry is not first else None,
                    share=_share(record, entry, measure, seconds),
                )


def missing(record: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Yield (case, entry) for entries without a result in every round."""
    for case in record["cases"]:
        yield from ((case, entry) for entry in case["entries"] if entry["status"] != "ok")


def outside_forward(record: Mapping[str, Any], name: str) -> float | None:
    """Return the share of a case's time that Unspool spends outside of the model's forward; None if unknown."""
    for case in record["cases"]:
        entry = case["entries"][0]
        if case["name"] == name and entry["seconds"]:
            runs = zip(entry["seconds"], entry["parts"], strict=True)
            return float(statistics.median(1 - parts["forward"] / seconds for seconds, parts in runs))
    return None


def _seconds(entry: Mapping[str, Any], measure: Measure) -> tuple[float, ...]:
    """Return the value of a measure for each run."""
    if measure == "whole":
        return tuple(entry["seconds"])
    first = entry["first_seconds"]
    if any(value is None for value in first):
        return ()
    if measure == "first":
        return tuple(first)
    following = entry["new_tokens"] - 1
    return tuple((whole - begin) / following for whole, begin in zip(entry["seconds"], first, strict=True))


def _share(
    record: Mapping[str, Any], entry: Mapping[str, Any], measure: Measure, seconds: Sequence[float]
) -> float | None:
    """Return the share of the run's typical bandwidth that reading the weights took, once a pass."""
    passes = 1 if measure == "rest" else entry["passes"][-1]
    bandwidth = record["machine"].get("bandwidth")
    if measure == "first" or entry["bytes_per_pass"] is None or passes is None or bandwidth is None:
        return None
    return float(entry["bytes_per_pass"] * passes / statistics.median(seconds) / bandwidth["median"])

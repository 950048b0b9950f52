"""One measurement: so many clients at once, and the throughput and latencies that they see."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from benchmarks.serve.client import Answer, ask
from benchmarks.serve.servers import CHAT

_ANIMALS: Final = ("fox", "hen", "bear", "mole", "crow", "goat", "toad", "swan")
_PLACES: Final = (
    "a mill",
    "a lake",
    "the woods",
    "an old castle",
    "the sea",
    "a village",
    "a deep well",
    "the king's garden",
)


@dataclass(frozen=True, slots=True)
class Figures:
    """What the clients saw. Times in seconds: the median, and the 99th percentile.

    throughput: tokens per second of all clients together.
    """

    clients: int
    tokens: int
    throughput: float
    first_p50: float
    first_p99: float
    between_p50: float
    between_p99: float


def prompts(count: int, round: int = 0) -> list[str]:
    """Return different prompts of about equal length; those of two rounds differ too."""
    pairs = list(itertools.product(_ANIMALS, _PLACES))
    return [
        f"Tell tale {round * count + index + 1} of a {animal} near {place}."
        for index, (animal, place) in zip(range(count), itertools.cycle(pairs), strict=False)
    ]


def measure(address: str, bodies: Sequence[dict[str, Any]], *, clients: int) -> Figures:
    """Send all bodies, by so many clients at once, each of which sends its next one after its last answer.

    Raises:
        RuntimeError: if an answer is an error.
    """
    return asyncio.run(_measure(address, bodies, clients))


async def _measure(address: str, bodies: Sequence[dict[str, Any]], clients: int) -> Figures:
    waiting = iter(bodies)
    answers: list[Answer] = []

    async def client() -> None:
        for each in waiting:
            answers.append(await ask(address, each, path=CHAT))

    started = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - started
    for answer in answers:
        if answer.status != 200 or answer.error or not answer.times:
            raise RuntimeError(f"status {answer.status}: {answer.error or answer.text[:200]}")
    tokens = sum(len(answer.times) for answer in answers)
    first = [answer.times[0] - answer.started for answer in answers]
    between = [after - before for answer in answers for before, after in itertools.pairwise(answer.times)]
    return Figures(
        clients=clients,
        tokens=tokens,
        throughput=tokens / seconds,
        first_p50=statistics.median(first),
        first_p99=percentile(first, 99),
        between_p50=statistics.median(between or [0.0]),
        between_p99=percentile(between or [0.0], 99),
    )


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the smallest value that is not below so many percent of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]

"""Parts of answers that the routes share: finish reasons, usage and vendor fields."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from unspool.results import Completion, Generation

_REASONS: Final[Mapping[str, str]] = {"eos": "stop", "stop": "stop", "length": "length", "time": "length"}


def finish_reason(reason: str) -> str:
    """Return OpenAI's word for an engine's finish reason; "stop" for criteria and strategies that end an output."""
    return _REASONS.get(reason, "stop")


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return the usage object without details."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def usage_of(
    generations: Iterable[Generation], *, reasoning_tokens: int = 0, only_scores: bool = False
) -> dict[str, Any]:
    """Return the usage of whole results; the prompt of several outputs counts once.

    Args:
        reasoning_tokens: of all outputs.
        only_scores: True if no token was wanted.
    """
    counts = [generation.usage for generation in generations]
    written = 0 if only_scores else sum(each.completion_tokens for each in counts)
    return {
        **usage(sum(each.prompt_tokens for each in counts), written),
        "prompt_tokens_details": {"cached_tokens": sum(each.cached_tokens for each in counts)},
        "completion_tokens_details": {"reasoning_tokens": reasoning_tokens},
    }


def stop_reason(completion: Completion, stops: Sequence[str]) -> str | int | None:
    """Return the stop string that ended an output, or the token if a token did; None otherwise."""
    if completion.finish_reason == "stop":
        written = "".join(completion.tokens)
        found = [(at, stop) for stop in stops if (at := written.find(stop)) >= 0]
        return min(found)[1] if found else None
    if completion.finish_reason == "eos" and completion.token_ids:
        return completion.token_ids[-1]
    return None


def vendor(generation: Generation, completion: Completion) -> dict[str, Any]:
    """Return the fields of our own for one output, below the key `unspool`."""
    found: dict[str, Any] = {
        "strategy": generation.strategy,
        "seed": generation.seed,
        "score": completion.score,
        "logprob": completion.logprob,
        "finish_reason": completion.finish_reason,
    }
    if completion.unmet is not None:
        found["unmet"] = completion.unmet
    return found

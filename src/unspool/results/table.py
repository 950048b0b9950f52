"""Results as a table: one flat record per completion."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from unspool.results.comparison import Comparison
from unspool.results.generation import Completion, Generation, finite_or_none


def to_records(results: Generation | Comparison | Iterable[Generation | Comparison | None]) -> list[dict[str, Any]]:
    """Return one flat dict per completion, in order: table rows, for example for `pandas.DataFrame`.

    Args:
        results: results of `generate`, `chat` or `compare`, for one prompt or several; or the `generations` of a
            stream, in which None (unfinished) gives no record.

    Returns:
        Records with the same keys: `prompt_index` (index of the result in the list), `index` (index of the completion
        in its result), `prompt`, `text`, `strategy`, `seed`, `finish_reason`, `num_prompt_tokens`, `num_tokens`,
        `logprob` (natural log), `mean_logprob` (per token), `score`, `unmet`. Records of a comparison also have
        `entry`, the entry's name. Values are plain; non-finite numbers become None.

    Raises:
        TypeError: if a result is of another type.
    """
    given = [results] if isinstance(results, Generation | Comparison) else results
    return [record for place, result in enumerate(given) for record in _records(place, result)]


def _records(place: int, result: Generation | Comparison | None) -> Iterator[dict[str, Any]]:
    if isinstance(result, Generation):
        for completion in result.completions:
            yield {"prompt_index": place, **_record(result, completion)}
    elif isinstance(result, Comparison):
        for name, generation in result.items():
            for completion in generation.completions:
                yield {"prompt_index": place, "entry": name, **_record(generation, completion)}
    elif result is not None:
        raise TypeError(f"to_records takes results of generate, chat or compare, got {type(result).__name__}")


def _record(generation: Generation, completion: Completion) -> dict[str, Any]:
    tokens = completion.token_ids
    return {
        "index": completion.index,
        "prompt": generation.prompt,
        "text": generation.text_of(completion),
        "strategy": generation.strategy,
        "seed": generation.seed,
        "finish_reason": completion.finish_reason,
        "num_prompt_tokens": generation.usage.prompt_tokens,
        "num_tokens": len(tokens),
        "logprob": finite_or_none(completion.logprob),
        "mean_logprob": finite_or_none(completion.mean_logprob),
        "score": finite_or_none(completion.score),
        "unmet": completion.unmet,
    }

"""vLLM's field `prompt_logprobs`: the log-probability and the rank of each prompt token, and the best tokens there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from unspool.planning import PlannedRequest
from unspool.results import Generation
from unspool.serving.answers.logprobs import TokenTexts, finite
from unspool.serving.errors import refused
from unspool.serving.execution.service import Service
from unspool.serving.requests.bodies import Body
from unspool.serving.requests.decoding import MAX_TOP_LOGPROBS
from unspool.strategies import WithPromptScores

_FIELD = "prompt_logprobs"


def num_prompt_top(body: Body, service: Service) -> int | None:
    """Return the number of best tokens per prompt token; None if the field is not given.

    Raises:
        ApiError: 400 if the number exceeds its limits, in a stream, or if the output does not continue the prompt.
    """
    count: int | None = body.get(_FIELD)
    if count is None:
        return None
    if not 0 <= count <= MAX_TOP_LOGPROBS:
        raise refused(_FIELD, f"must be between 0 and {MAX_TOP_LOGPROBS}, got {count}")
    if body.get("stream"):
        raise refused(_FIELD, "cannot be streamed; leave out `stream`")
    if service.lm.info.needs_source:
        raise refused(_FIELD, "is not possible for this model: its output does not continue the prompt")
    return count


def with_prompt_scores(jobs: Sequence[PlannedRequest], num_top: int) -> list[PlannedRequest]:
    """Return planned requests that also score their prompts. num_top: best tokens per prompt token."""
    found = []
    for job in jobs:
        inner, most = job.request.strategy, num_top
        if isinstance(inner, WithPromptScores):  # with `echo` and `logprobs`
            most = max(most, inner.num_top)
            inner = inner.inner
        strategy = WithPromptScores(inner, most, ranks=True)
        found.append(replace(job, request=replace(job.request, strategy=strategy)))
    return found


def prompt_logprobs(
    job: PlannedRequest, generation: Generation, *, num_top: int, texts: TokenTexts
) -> list[dict[str, dict[str, Any]] | None]:
    """Return one entry per prompt token, in vLLM's form: token id --> figures. The first one is None.

    Args:
        job: one of `with_prompt_scores`, after its end.
    """
    strategy = job.request.strategy
    assert isinstance(strategy, WithPromptScores), "the job was planned with prompt scores"
    tops = generation.prompt_top_logprobs or [()] * len(generation.prompt_token_ids)
    own = zip(generation.prompt_token_ids, generation.prompt_logprobs or (), tops, strict=True)
    entries: list[dict[str, dict[str, Any]] | None] = []
    for at, (token, logprob, top) in enumerate(own):
        if at == 0:
            entries.append(None)
            continue
        figures = [(token, logprob, strategy.prompt_ranks[at - 1])]
        figures += [(each.token_id, each.logprob, rank) for rank, each in enumerate((top or ())[:num_top], 1)]
        entries.append(
            {
                str(id): {"logprob": finite(value), "rank": rank, "decoded_token": texts.text(id)}
                for id, value, rank in figures
            }
        )
    return entries

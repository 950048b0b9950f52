"""Runs the inputs of a call: a bounded number at once, answered in order.

Owns: the number of running requests, and the calls of a streamer of transformers. Does not know: how answers are used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from unspool.pipelines.inputs import Prepared
from unspool.results import Generation
from unspool.streaming import Stream

if TYPE_CHECKING:
    from unspool.config import GenerationConfig
    from unspool.model import LanguageModel


def answers(
    lm: LanguageModel, inputs: Iterable[Prepared], config: GenerationConfig | None, *, at_once: int | None
) -> Iterator[tuple[Prepared, Generation]]:
    """Yield each input with its answer, in order. Inputs are taken when a request can start.

    If the iterator is closed early, running requests are cancelled.

    Args:
        at_once: most running requests; None for no limit.
    """
    waiting: deque[tuple[Prepared, Stream]] = deque()
    try:
        for each in inputs:
            waiting.append((each, lm.stream(each.prompt, config=config, **each.options)))
            if len(waiting) == at_once:
                yield _next(waiting)
        while waiting:
            yield _next(waiting)
    finally:
        for _, stream in waiting:
            stream.close()


def _next(waiting: deque[tuple[Prepared, Stream]]) -> tuple[Prepared, Generation]:
    """Read the oldest stream to its end. This also advances all others."""
    prepared, stream = waiting[0]
    for _ in stream:
        pass
    waiting.popleft()
    return prepared, stream.generation


@contextmanager
def ended_on_failure(streamer: Any) -> Iterator[None]:
    """Call a streamer's `end` if an error is raised: another thread can be waiting for it."""
    try:
        yield
    except BaseException:
        if streamer is not None and hasattr(streamer, "end"):
            with suppress(Exception):
                streamer.end()
        raise


def streamed(
    lm: LanguageModel, inputs: Iterable[Prepared], config: GenerationConfig | None, streamer: Any
) -> Iterator[tuple[Prepared, Generation]]:
    """Yield each input with its answer, one input after the other, and send every token to the streamer.

    As in transformers, the streamer gets the output prefix as [1, length], each token as [1], then `end`.
    `ended_on_failure` calls `end` after an error.
    """
    import torch

    for each in inputs:
        with lm.stream(each.prompt, config=config, **each.options) as stream:
            streamer.put(torch.tensor([each.output_prefix], device="cpu"))
            for chunk in stream:
                for token in chunk.token_ids:
                    streamer.put(torch.tensor([token], device="cpu"))
        streamer.end()
        yield each, stream.generation

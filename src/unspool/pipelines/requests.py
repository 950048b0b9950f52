"""Runs the inputs of a call: so many at once, answered in order.

Owns: how many requests are under way, and what a streamer of transformers is told. Does not know: what becomes of the
answers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final

from unspool.pipelines.inputs import Prepared
from unspool.results import Generation
from unspool.streaming import Stream

if TYPE_CHECKING:
    from unspool.config import GenerationConfig
    from unspool.model import LanguageModel

AHEAD: Final = 32
"""Requests under way at once where inputs come from an iterator and no `batch_size` is given."""


def answers(
    lm: LanguageModel, inputs: Iterable[Prepared], config: GenerationConfig | None, *, at_once: int | None
) -> Iterator[tuple[Prepared, Generation]]:
    """Yield each input with its answer, in order; inputs are taken as there is room for them.

    Leaving early cancels what is under way.

    Args:
        at_once: most requests under way; None for all of them.
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
    """Read the oldest stream to its end, which drives all others too."""
    prepared, stream = waiting[0]
    for _ in stream:
        pass
    waiting.popleft()
    return prepared, stream.generation


@contextmanager
def told_of_failure(streamer: Any) -> Iterator[None]:
    """Tell a streamer of the end where something fails: somebody may be waiting for it in another thread."""
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
    """Yield each input with its answer, one input after the other, the streamer told of every token as it comes.

    A streamer is told what transformers tells it: what the output begins with as [1, length], each token as [1], then
    the end; see `told_of_failure` for the end of what fails.
    """
    import torch

    for each in inputs:
        with lm.stream(each.prompt, config=config, **each.options) as stream:
            streamer.put(torch.tensor([each.opening], device="cpu"))
            for chunk in stream:
                for token in chunk.token_ids:
                    streamer.put(torch.tensor([token], device="cpu"))
        streamer.end()
        yield each, stream.generation

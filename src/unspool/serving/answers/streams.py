"""The usage beside the chunks of a streamed answer, counted as they are sent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unspool.planning import PlannedRequest
from unspool.results import Chunk
from unspool.serving.answers.answers import usage
from unspool.serving.errors import refused
from unspool.serving.requests.bodies import Body


class StreamUsage:
    """Counts the tokens of a stream.

    Args:
        body: with `stream_options`.
        jobs: the planned requests.

    Attributes:
        wanted: True if the client asked for usage; never sent unasked.
    """

    def __init__(self, body: Body, jobs: Sequence[PlannedRequest]) -> None:
        options = body.get("stream_options")
        self.wanted = options is not None and (options.include_usage or options.continuous_usage_stats)
        self._always = options is not None and options.continuous_usage_stats
        self._prompt = sum(len(job.request.prompt) for job in jobs)
        self._written = 0

    def add(self, chunk: Chunk) -> None:
        """Count a chunk's tokens."""
        self._written += len(chunk.token_ids)

    def beside(self, value: dict[str, Any]) -> dict[str, Any]:
        """Return a chunk's object with the field `usage` as the client asked."""
        if not self.wanted:
            return value
        return {**value, "usage": usage(self._prompt, self._written) if self._always else None}


def check_stream_options(body: Body) -> None:
    """Check that `stream_options` come with a stream.

    Raises:
        ApiError: 400 if `stream` is off.
    """
    if body.get("stream_options") is not None and not body.get("stream"):
        raise refused("stream_options", "needs `stream: true`")

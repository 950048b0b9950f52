"""The log of requests: one line each, at its end, as key=value pairs. No text of prompts or answers is in it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import Final

from unspool.serving.errors import api_error
from unspool.serving.service import OpenRequest

_LOG: Final = logging.getLogger("unspool.server")

CLIENT_LEFT: Final = 499
"""Status in the log of a request after its client left."""


class RequestLog:
    """The line of one request.

    Args:
        request_id: as in the header X-Request-Id.
        path: of the route.
        request: the request.
    """

    def __init__(self, request_id: str, path: str, request: OpenRequest) -> None:
        self._head, self._request = f"request={request_id} path={path}", request

    def write(self, status: int, outcome: str) -> None:
        """Write the line. outcome: a word for how the request ended."""
        request = self._request
        figures = {
            "prompts": len(request.jobs),
            "strategy": request.strategy or "-",
            "prompt_tokens": sum(len(job.request.prompt) for job in request.jobs),
            "cached_tokens": sum(each.usage.cached_tokens for each in request.generations),
            "completion_tokens": sum(each.usage.completion_tokens for each in request.generations),
            "seconds": f"{request.seconds:.3f}",
        }
        told = " ".join(f"{name}={value}" for name, value in figures.items())
        _LOG.info("%s status=%d outcome=%s %s", self._head, status, outcome, told)

    async def following(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the events of a stream; at its end, write the line and count an error in the metrics."""
        status, outcome = CLIENT_LEFT, "client_left"
        try:
            async for each in events:
                yield each
            failure = self._request.error  # some routes send it as an event of their own
            status, outcome = (200, "streamed") if failure is None else (failure.status, failure.code or "error")
        except Exception as error:
            told = api_error(error)
            status, outcome = told.status, told.code or "error"
            raise told from (None if told is error else error)
        finally:
            if status not in (200, CLIENT_LEFT):
                self._request.count_error(status)
            self.write(status, outcome)
            if hasattr(events, "aclose"):
                await events.aclose()

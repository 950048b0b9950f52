"""The log of requests: one line each, at its end, as key=value pairs. No text of prompts or answers is in it."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

from unspool.serving.errors import ApiError, api_errors
from unspool.serving.execution.service import OpenRequest
from unspool.serving.http.http_answers import ClientLeft

_LOG: Final = logging.getLogger("unspool.server")

CLIENT_LEFT: Final = 499
"""Status in the log of a request after its client left."""


class RequestLog:
    """The line of one request.

    Args:
        request_id: as in the header X-Request-Id.
        path: of the route.
        request: the request; None for a call that only reads the model.
    """

    def __init__(self, request_id: str, path: str, request: OpenRequest | None = None) -> None:
        self._head, self._request = f"request={request_id} path={path}", request
        self._began = time.perf_counter()

    def write(self, status: int, outcome: str) -> None:
        """Write the line. outcome: a word for how the request ended."""
        told = " ".join(f"{name}={value}" for name, value in self._figures().items())
        _LOG.info("%s status=%d outcome=%s %s", self._head, status, outcome, told)

    def _figures(self) -> dict[str, Any]:
        request = self._request
        if request is None:
            return {"seconds": f"{time.perf_counter() - self._began:.3f}"}
        return {
            "prompts": len(request.jobs),
            "strategy": request.strategy or "-",
            "prompt_tokens": sum(len(job.request.prompt) for job in request.jobs),
            "cached_tokens": sum(each.usage.cached_tokens for each in request.generations),
            "completion_tokens": sum(each.usage.completion_tokens for each in request.generations),
            "seconds": f"{request.seconds:.3f}",
        }

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Write the line if the block fails, or if its client leaves.

        Raises:
            ApiError: in place of any other exception.
            ClientLeft: if the client left.
        """
        try:
            with api_errors(ClientLeft):
                yield
        except ClientLeft:
            self.write(CLIENT_LEFT, "client_left")
            raise
        except ApiError as told:
            self.write(told.status, told.code or "error")
            raise

    async def following(self, events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Yield the events of a stream; at its end, write the line and count an error in the metrics."""
        assert self._request is not None, "only requests are streamed"
        status, outcome = CLIENT_LEFT, "client_left"
        try:
            with api_errors():
                async for each in events:
                    yield each
            failure = self._request.error  # some routes send it as an event of their own
            status, outcome = (200, "streamed") if failure is None else (failure.status, failure.code or "error")
        except ApiError as told:
            status, outcome = told.status, told.code or "error"
            raise
        finally:
            if status not in (200, CLIENT_LEFT):
                self._request.count_error(status)
            self.write(status, outcome)
            if hasattr(events, "aclose"):
                await events.aclose()

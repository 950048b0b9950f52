"""Admission: a bound on running prompts, and a bounded queue in front of it. For one event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from unspool.serving.errors import ApiError

_RETRY_SECONDS: Final = 1
"""Value of the header Retry-After. A place in the queue is free again after about one answer."""


class Admission:
    """Lets requests in, in the order of arrival, while there is room for their prompts.

    Args:
        max_running: most prompts that run at once. A request with more prompts than this runs alone.
        max_queue: most prompts that wait.

    Attributes:
        running, waiting: numbers of prompts now.
        rejected: number of requests that were turned away.
        closed: True while the server shuts down; new requests are turned away.
    """

    def __init__(self, max_running: int, max_queue: int) -> None:
        self._max_running, self._max_queue = max_running, max_queue
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()
        self.running = self.waiting = self.rejected = 0
        self.closed = False

    @asynccontextmanager
    async def room(self, count: int) -> AsyncIterator[None]:
        """Wait for room for `count` prompts, and hold it during the context.

        Raises:
            ApiError: 429 if the queue is full; 503 if the server shuts down.
        """
        if self.closed:
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if self._queue or not self._fits(count):
            await self._wait(count)
        else:
            self.running += count
        try:
            yield
        finally:
            self.running -= count
            self._admit()

    def end_waiting(self, reason: ApiError) -> None:
        """End every waiting request with an error."""
        for count, place in self._queue:
            self.waiting -= count
            if not place.done():
                place.set_exception(reason)
        self._queue.clear()

    def _fits(self, count: int) -> bool:
        return not self.running or self.running + count <= self._max_running

    async def _wait(self, count: int) -> None:
        if self.waiting + count > self._max_queue:
            self.rejected += 1
            raise ApiError(
                429,
                f"the queue is full: {self.running} prompts run and {self.waiting} wait; try again later",
                code="queue_full",
                headers={"Retry-After": str(_RETRY_SECONDS)},
            )
        place = asyncio.get_running_loop().create_future()
        entry = (count, place)
        self._queue.append(entry)
        self.waiting += count
        try:
            await place
        except asyncio.CancelledError:
            if entry in self._queue:
                self._queue.remove(entry)
                self.waiting -= count
            elif not place.cancelled() and place.exception() is None:  # admitted in the same moment
                self.running -= count
            self._admit()
            raise

    def _admit(self) -> None:
        while self._queue and self._fits(self._queue[0][0]):
            count, place = self._queue.popleft()
            self.waiting -= count
            if not place.cancelled():  # else its client has just left
                self.running += count
                place.set_result(None)

"""HTTP answers that notice a client that leaves, whole and streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from unspool.serving.http.sse import COMMENT, DONE, HEADERS, with_errors

Found = TypeVar("Found")


class ClientLeft(Exception):
    """The client closed its connection before the answer."""


async def unless_left(request: Request, work: Awaitable[Found]) -> Found:
    """Return the result of `work`; cancel it if the client leaves.

    Raises:
        ClientLeft: if the client leaves first.
    """
    task = asyncio.ensure_future(work)
    left = asyncio.ensure_future(_left(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientLeft
    finally:
        for each in (task, left):
            each.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """A stream of server-sent events. If the client leaves, the events are closed at once.

    Args:
        events: the events; a fault among them becomes an error event.
        keep_alive: seconds of silence before a comment is sent.
        headers: further headers.
        close: called at the end of the answer, even if no event was read.
        end: bytes after the last event; empty for none.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        keep_alive: float,
        headers: Mapping[str, str],
        close: Callable[[], Awaitable[None]],
        end: bytes = DONE,
    ) -> None:
        super().__init__(headers={**HEADERS, **headers})
        del self.headers["content-length"]
        self._events = with_errors(events, end)
        self._keep_alive, self._close = keep_alive, close
        self._last = 0.0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send(send))
        left = asyncio.ensure_future(_left(receive))
        try:
            await asyncio.wait({sender, left}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                with suppress(OSError):  # the client left while a piece was sent
                    sender.result()
        finally:
            for each in (sender, left):
                each.cancel()
            await asyncio.gather(sender, left, return_exceptions=True)
            await self._close()

    async def _send(self, send: Send) -> None:
        events: Any = self._events
        clock = asyncio.get_running_loop().time
        comments: asyncio.Task[None] | None = None
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            self._last = clock()
            # One task per stream: a time limit for each event would cost more than the event.
            comments = asyncio.ensure_future(self._comment(send))
            async for piece in events:
                self._last = clock()
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            comments.cancel()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            if comments is not None:
                comments.cancel()
                await asyncio.gather(comments, return_exceptions=True)
            await events.aclose()

    async def _comment(self, send: Send) -> None:
        """Send a comment after each `keep_alive` seconds of silence."""
        clock = asyncio.get_running_loop().time
        while True:
            await asyncio.sleep(self._last + self._keep_alive - clock())
            if clock() - self._last >= self._keep_alive:
                self._last = clock()
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})

"""Server-sent events: the bytes of a stream, with comments during silence and an error event at a fault."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Final

from unspool.serving.errors import api_error

HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE: Final = b"data: [DONE]\n\n"
_COMMENT: Final = b": keep-alive\n\n"


def event(value: Any, name: str | None = None) -> bytes:
    """Return one event with a JSON value; `name` adds an `event:` line."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


async def with_errors(events: AsyncIterator[bytes], end: bytes = DONE) -> AsyncIterator[bytes]:
    """Yield the events, then `end`. A fault becomes an event with the error, so that no client waits in vain."""
    try:
        async for each in events:
            yield each
    except Exception as error:
        yield event(api_error(error).body())
    if end:
        yield end


async def with_comments(events: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """Yield the events, and a comment after each `seconds` of silence, so that proxies keep the connection."""
    upcoming: asyncio.Task[bytes] | None = None
    try:
        while True:
            upcoming = upcoming or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({upcoming}, timeout=seconds)
            if not done:
                yield _COMMENT
                continue
            task, upcoming = upcoming, None
            try:
                yield task.result()
            except StopAsyncIteration:
                return
    finally:
        if upcoming is not None:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)
        if hasattr(events, "aclose"):
            await events.aclose()

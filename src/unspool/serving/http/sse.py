"""Server-sent events: the bytes of a stream, with an error event at a fault."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

from unspool.serving.errors import api_error

HEADERS: Final = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
DONE: Final = b"data: [DONE]\n\n"
COMMENT: Final = b": keep-alive\n\n"
"""Sent during silence, so that proxies keep the connection."""


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

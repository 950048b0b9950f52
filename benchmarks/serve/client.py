"""A cheap client of the HTTP API, so that hundreds fit in one process: one request, its events and times."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit


@dataclass(slots=True)
class Answer:
    """An answer as far as it was read.

    status: of HTTP; 0 if the client left before. events: JSON values of a stream, without [DONE]. is_done: True if
    [DONE] came. text: the body of an answer that is no stream. started, ended: in seconds, on `time.perf_counter`.
    times: arrival of each event with text.
    """

    started: float
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    events: list[dict[str, Any]] = field(default_factory=list)
    is_done: bool = False
    text: str = ""
    times: list[float] = field(default_factory=list)
    ended: float = 0.0

    @property
    def written(self) -> str:
        """The text of the first output."""
        choices = [event["choices"][0] for event in self.events if event.get("choices")]
        if self.text:
            choices = json.loads(self.text)["choices"][:1]
        return "".join(_text_of(choice) for choice in choices)

    @property
    def error(self) -> dict[str, Any] | None:
        """The error object of the answer, or of its stream; None without an error."""
        if self.text.startswith("{") and "error" in (value := json.loads(self.text)):
            return dict(value["error"])
        return next((event["error"] for event in self.events if event.get("error")), None)


def _text_of(choice: Mapping[str, Any]) -> str:
    parts = choice.get("delta") or choice.get("message") or choice
    return parts.get("text") or parts.get("content") or ""


async def ask(
    address: str, body: Mapping[str, Any], *, path: str = "/v1/completions", leave_after: int | None = None
) -> Answer:
    """Post a body and read the answer.

    Args:
        address: of the server, such as http://127.0.0.1:8000.
        leave_after: break the connection after this many events, 0 for at once; None to read to the end.
    """
    place = urlsplit(address)
    answer = Answer(started=time.perf_counter())
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    try:
        data = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode() + data)
        await writer.drain()
        if leave_after != 0:
            await _read(reader, answer, leave_after)
    finally:
        answer.ended = time.perf_counter()
        writer.transport.abort()
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer, leave_after: int | None) -> None:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    answer.status = int(head[0].split()[1])
    answer.headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:]) if name}
    pieces = _pieces(reader, answer.headers)
    if not answer.headers.get("content-type", "").startswith("text/event-stream"):
        answer.text = b"".join([piece async for piece in pieces]).decode()
        return
    rest = b""
    async with aclosing(pieces):
        async for piece in pieces:
            *events, rest = (rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
            for event in events:
                _note(answer, event)
            if leave_after is not None and len(answer.events) >= leave_after:
                return


async def _pieces(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
    if headers.get("transfer-encoding") != "chunked":
        yield (
            await reader.readexactly(int(headers["content-length"]))
            if "content-length" in headers
            else (await reader.read())
        )
        return
    while size := int(await reader.readuntil(b"\r\n"), 16):
        yield await reader.readexactly(size)
        await reader.readexactly(2)


def _note(answer: Answer, event: bytes) -> None:
    for line in event.split(b"\n"):
        data = line.removeprefix(b"data: ") if line.startswith(b"data: ") else b""
        if data == b"[DONE]":
            answer.is_done = True
        elif data:
            value = json.loads(data)
            answer.events.append(value)
            if any(_text_of(choice) for choice in value.get("choices") or ()):
                answer.times.append(time.perf_counter())

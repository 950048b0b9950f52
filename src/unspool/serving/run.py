"""Runs the application under uvicorn, and ends it in order on SIGTERM and SIGINT."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Final

import uvicorn
from fastapi import FastAPI

from unspool.serving.errors import ApiError
from unspool.serving.execution.service import Service
from unspool.serving.http.listening import listening_error, port_of

_END_SECONDS: Final = 5.0
"""Seconds for the last events after the grace time, before uvicorn closes the connections."""


class Server(uvicorn.Server):
    """uvicorn's server, which lets running requests end before it stops, and then exits normally."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[int], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._ending: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and tell the port.

        Raises:
            OptionError: if another program began to listen after the sockets were bound.
        """
        try:
            await super().startup(sockets=sockets)
        except OSError as error:
            await self.lifespan.shutdown()
            settings = self._service.settings
            raise listening_error(error, settings.host, settings.port) from None
        if self.started:
            self._ready(port_of(self.servers[0].sockets))

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle signals in the event loop. A second one ends the server at once."""
        loop = asyncio.get_running_loop()
        handled = (signal.SIGINT, signal.SIGTERM)
        before = {each: signal.getsignal(each) for each in handled}

        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self._on_signal)

        for each in handled:
            with suppress(ValueError):  # not in the main thread
                signal.signal(each, handle)
        try:
            yield
        finally:
            for each, handler in before.items():
                with suppress(ValueError):
                    signal.signal(each, handler)

    def _on_signal(self) -> None:
        if self._ending is not None:
            self.force_exit = self.should_exit = True
            return
        self._ending = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        """Turn new requests away, wait for the running ones, and end the rest with an error."""
        service = self._service
        service.admission.closed = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + service.settings.grace
        while (service.admission.running or service.admission.waiting) and loop.time() < deadline:
            await asyncio.sleep(0.02)
        service.end_all(ApiError(503, "the server is shutting down", code="shutting_down"))
        self.should_exit = True


def serve(app: FastAPI, sockets: Sequence[socket.socket], ready: Callable[[int], None] = lambda port: None) -> None:
    """Serve an application of `create_app` until a signal.

    Args:
        sockets: of `listening.bound`.
        ready: called with the port when requests are accepted.

    Raises:
        OptionError: if another program listens on the port.
    """
    service: Service = app.state.service
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=int(_END_SECONDS),
        lifespan="on",
    )
    asyncio.run(Server(config, service, ready).serve(list(sockets)))

"""The engine's thread of the server, and running requests as seen from the event loop.

Owns the hand-over between the two. Knows neither HTTP nor options.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

from unspool.engine.driver import Driver, Ticket
from unspool.planning import PlannedRequest
from unspool.records import Recording
from unspool.results import Chunk, Generation
from unspool.streaming import ChunkReader
from unspool.text.detokenize import Detokenizer

_LOG = logging.getLogger("unspool.server")


class EngineThread:
    """Runs the steps of an engine in a thread while requests are open. Other threads hand commands to it.

    A submission waits for the end of the current step only, because this thread carries it out.

    Args:
        driver: of the engine. Other threads can use it as well.
    """

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self._commands: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="unspool-engine", daemon=True)
        self._woken: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread after its current step, and wait for that."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def call(self, command: Callable[[], None]) -> None:
        """Let the thread run a command between two steps. The command must not raise."""
        with self._changed:
            self._commands.append(command)
            self._changed.notify()

    def wake(self, loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
        """Set an event of an event loop, from any thread; for the thread of the engine, after its current step.

        An event loop that wakes during a step takes the interpreter from the engine. So it wakes once per step, for all
        requests.
        """
        if threading.get_ident() == self._thread.ident:
            self._woken.setdefault(loop, []).append(event)
        else:
            post(loop, event.set)

    def _run(self) -> None:
        busy = False
        while True:
            with self._changed:
                while not (busy or self._commands or self._stopping):
                    self._changed.wait()
                if self._stopping:
                    return
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:
                command()
            try:
                busy = self.driver.step()
            except Exception:
                _LOG.exception("a step of the engine failed; its requests were cancelled")
            woken, self._woken = self._woken, {}
            for loop, events in woken.items():
                post(loop, partial(_set_all, events))


class Running:
    """Requests that were submitted together, for one event loop.

    Args:
        driver: of the engine.
        jobs: the requests.
        detokenizer: None without a tokenizer.
    """

    def __init__(self, driver: Driver, jobs: Sequence[PlannedRequest], detokenizer: Detokenizer | None) -> None:
        self._driver, self._jobs, self._detokenizer = driver, jobs, detokenizer
        self._loop = asyncio.get_running_loop()
        self._wake = asyncio.Event()
        self._is_woken = False
        self._tickets: list[Ticket] = []
        self._reader = ChunkReader((), (), detokenizer)

    @property
    def generations(self) -> list[Generation | None]:
        """One per request, in order; None for unfinished ones."""
        return self._reader.generations

    async def submit(self, thread: EngineThread) -> None:
        """Submit the requests.

        Raises:
            PromptError, OptionError, CapacityError: if the engine refuses one.
        """
        done: asyncio.Future[list[Ticket]] = self._loop.create_future()

        def notify() -> None:
            if not self._is_woken:
                self._is_woken = True
                thread.wake(self._loop, self._wake)

        def submit() -> None:
            try:
                tickets = self._driver.submit([job.request for job in self._jobs], notify)
            except Exception as error:
                post(self._loop, partial(_refuse, done, error))
            else:
                post(self._loop, partial(self._accept, done, tickets))

        thread.call(submit)
        try:
            self._tickets = await done
        except asyncio.CancelledError:
            if not done.cancelled() and done.exception() is None:  # submitted in the same moment
                self._tickets = done.result()
                self.cancel()
            raise
        self._reader = ChunkReader(self._tickets, self._jobs, self._detokenizer)

    async def recording(self, thread: EngineThread, first_step: int = 0) -> Recording | None:
        """Return the trace recording so far of the first request; see `Engine._recording`."""
        found: asyncio.Future[Recording | None] = self._loop.create_future()

        def read() -> None:
            recording = self._driver.recording(self._tickets[0], first_step)
            post(self._loop, lambda: None if found.done() else found.set_result(recording))

        thread.call(read)
        return await found

    def _accept(self, done: asyncio.Future[list[Ticket]], tickets: list[Ticket]) -> None:
        if done.cancelled():
            for ticket in tickets:
                self._driver.cancel(ticket)
        else:
            done.set_result(tickets)

    async def chunks(self, deadline: float = math.inf) -> AsyncIterator[Chunk]:
        """Yield chunks until every request has ended. Leaving early cancels the rest.

        Args:
            deadline: on the clock of the event loop, in seconds.

        Raises:
            Exception: the error of the first request that fails.
            TimeoutError: if the deadline passes.
        """
        queue = self._tickets[0].event_queue
        # One timer per request: a time limit for each event would cost more than the event.
        timer = None if math.isinf(deadline) else self._loop.call_at(deadline, self._wake.set)
        try:
            while True:
                self._wake.clear()
                self._is_woken = False  # before the events are read: a later one wakes this task again
                while queue.events:
                    for chunk in self._reader.push(queue.events.popleft()):
                        yield chunk
                if queue.is_done:
                    break
                if self._loop.time() >= deadline:
                    raise TimeoutError
                await self._wake.wait()
            for chunk in self._reader.finish():
                yield chunk
        finally:
            if timer is not None:
                timer.cancel()
            self.cancel()

    async def finish(self, deadline: float = math.inf) -> list[Generation]:
        """Wait for the end of all requests, and return their results in order. Raises as `chunks`."""
        async for _ in self.chunks(deadline):
            pass
        return [generation for generation in self.generations if generation is not None]

    def cancel(self) -> None:
        """Cancel the unfinished requests. Does nothing after the end."""
        for ticket in self._tickets:
            self._driver.cancel(ticket)


def post(loop: asyncio.AbstractEventLoop, call: Callable[[], object]) -> None:
    """Let an event loop make a call, from any thread. Does nothing if the loop is closed."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(call)


def _set_all(events: Sequence[asyncio.Event]) -> None:
    for event in events:
        event.set()


def _refuse(done: asyncio.Future[list[Ticket]], error: Exception) -> None:
    if not done.cancelled():
        done.set_exception(error)

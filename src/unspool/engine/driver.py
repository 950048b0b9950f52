"""The thread-safe driver of an engine: one thread runs steps, the others wait for their events.

Owns the engine's lock and the event queues. Knows neither tokens nor text.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter

from unspool.engine.engine import Engine
from unspool.engine.request import Request
from unspool.errors import CancelledRequest
from unspool.records import Recording
from unspool.tuning import POLL_SECONDS
from unspool.types import Committed, Event, Failed, Finished, Tentative


@dataclass(eq=False, slots=True)
class EventQueue:
    """The events of requests that were submitted together.

    num_open: requests that have not ended. notify: called after each new event, by the thread that runs the engine, or
    that cancels.
    """

    events: deque[Event] = field(default_factory=deque)
    num_open: int = 0
    notify: Callable[[], object] | None = None

    def add(self, event: Event) -> None:
        """Add an event and call `notify`."""
        self.events.append(event)
        if self.notify is not None:
            self.notify()

    @property
    def is_done(self) -> bool:
        return not self.events and not self.num_open


@dataclass(eq=False, slots=True)
class Ticket:
    """A submitted request."""

    number: int
    event_queue: EventQueue
    over: bool = False


class Driver:
    """Shares one engine among threads, as blocking iterators over the events of requests.

    Args:
        engine: must be used through this driver only.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._engine_lock = threading.Lock()
        self._changed = threading.Condition()
        self._tickets: dict[int, Ticket] = {}
        self._driving = False
        self._to_cancel: deque[int] = deque()

    @contextmanager
    def _holding_engine(self) -> Iterator[None]:
        """Hold the engine's lock; afterwards, carry out cancellations that arrived meanwhile."""
        try:
            with self._engine_lock:
                yield
        finally:
            self._cancel_pending()

    def _cancel_pending(self) -> None:
        """Carry out cancellations, unless another caller holds the engine and will do it.

        The garbage collector can cancel a stream in the middle of a step of the same thread. So a cancellation must
        neither wait for the engine nor change it during a step.
        """
        while self._to_cancel and self._engine_lock.acquire(blocking=False):
            try:
                while self._to_cancel:
                    self.engine.cancel(self._to_cancel.popleft())
            finally:
                self._engine_lock.release()

    def submit(self, requests: Sequence[Request], notify: Callable[[], object] | None = None) -> list[Ticket]:
        """Queue requests together: all of them, or none if one is refused.

        Args:
            notify: see `EventQueue`; None if a thread waits for the events.

        Returns:
            One ticket per request, in order.

        Raises:
            PromptError, OptionError, CapacityError: if `Engine.submit` refuses a request.
        """
        tickets: list[Ticket] = []
        event_queue = EventQueue(notify=notify)
        with self._holding_engine():
            try:
                for request in requests:
                    tickets.append(Ticket(self.engine.submit(request), event_queue))
            except BaseException:
                for ticket in tickets:
                    self.engine.cancel(ticket.number)
                raise
            with self._changed:
                event_queue.num_open = len(tickets)
                self._tickets.update({ticket.number: ticket for ticket in tickets})
        return tickets

    def submit_whole(self, requests: Sequence[Request]) -> list[Ticket]:
        """Queue requests that are not streamed, longest prompt first; see `submit`.

        Sequences of similar length then get neighboring slots, which takes fewer attention calls. The last passes over
        prompts, for which most requests wait, become short.
        """
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt))
        tickets = self.submit([requests[index] for index in order])
        return [ticket for _, ticket in sorted(zip(order, tickets, strict=True), key=itemgetter(0))]

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a request and free its memory, after the current step at the latest. Does nothing if it has ended."""
        if ticket.over:
            return
        self._to_cancel.append(ticket.number)
        self._cancel_pending()
        with self._changed:
            self._end(ticket, Failed(request=ticket.number, error=CancelledRequest("the request was cancelled")))
            self._changed.notify_all()

    def recording(self, ticket: Ticket, first_step: int = 0) -> Recording | None:
        """Return the trace recording so far of a request, after the current step; see `Engine._recording`."""
        with self._holding_engine():
            return self.engine._recording(ticket.number, first_step)

    def events(self, tickets: Sequence[Ticket]) -> Iterator[Event]:
        """Yield the events of requests that were submitted together, until each has ended. Closing it cancels them."""
        try:
            while tickets and not tickets[0].event_queue.is_done:
                yield self.wait(tickets[0].event_queue)
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    def finish(self, requests: Sequence[Request]) -> list[Finished]:
        """Run requests together to their end and return their results in order.

        Raises:
            Exception: the error of the first request that fails, after the others are cancelled; or as `submit`.
        """
        return self.collect(self.submit(requests))

    def collect(self, tickets: Sequence[Ticket], finished: Callable[[], object] = lambda: None) -> list[Finished]:
        """Wait for requests that were submitted together and return their results in order.

        Args:
            tickets: of `submit` or `submit_whole`.
            finished: called once per request, when it ends.

        Raises:
            Exception: the error of the first request that fails, after the others are cancelled.
        """
        done: dict[int, Finished] = {}
        for event in self.events(tickets):
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Finished):
                done[event.request] = event
                finished()
        return [done[ticket.number] for ticket in tickets]

    def wait(self, event_queue: EventQueue) -> Event:
        """Return the queue's next event, and run the engine if no other thread does. The queue must not be done."""
        while True:
            with self._changed:
                while not event_queue.events and self._driving:
                    self._changed.wait()
                if event_queue.events:
                    return event_queue.events.popleft()
                assert event_queue.num_open, "no open request can produce an event"
                self._driving = True
            self._drive()

    def step(self) -> bool:
        """Run one step, for a thread that does nothing else. Returns False, at once, if no request is open."""
        with self._changed:
            while self._driving:
                self._changed.wait()
            if not self._tickets:
                return False
            self._driving = True
        self._drive()
        return True

    def _drive(self) -> None:
        """Run one step and deliver its events."""
        events: Sequence[Event] = ()
        try:
            with self._holding_engine():
                events = self.engine.step()
            if self.engine.is_stalled:
                time.sleep(POLL_SECONDS)
        except BaseException as error:
            # An interrupt can leave any running request half-updated, so cancel all of them.
            events = self._abort(error)
            raise
        finally:
            with self._changed:
                self._driving = False
                for event in events:
                    self._deliver(event)
                self._changed.notify_all()

    def _abort(self, error: BaseException) -> list[Event]:
        with self._holding_engine():
            # Read once: requests that are submitted after the lock is free must not fail.
            numbers = list(self._tickets)
            for number in numbers:
                self.engine.cancel(number)
        reason = CancelledRequest(f"the engine was interrupted: {type(error).__name__}")
        return [Failed(request=number, error=reason) for number in numbers]

    def _deliver(self, event: Event) -> None:
        ticket = self._tickets.get(event.request)
        if ticket is None:
            return
        if isinstance(event, Committed | Tentative):
            ticket.event_queue.add(event)
        else:
            self._end(ticket, event)

    def _end(self, ticket: Ticket, event: Finished | Failed) -> None:
        if not ticket.over:
            ticket.event_queue.num_open -= 1
            ticket.over = True
            ticket.event_queue.add(event)
            self._tickets.pop(ticket.number, None)

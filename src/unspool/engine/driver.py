"""Shares one engine among threads: one drives, the others wait for their events.

Owns the lock and the queues of events. Knows no tokens and no text.
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
from unspool.types import Committed, Event, Failed, Finished, Tentative

_PATIENCE = 0.001
"""Seconds between looks at whether another engine has given back what this one's requests wait for."""


@dataclass(eq=False, slots=True)
class EventQueue:
    """The events of requests that were submitted together, and how many of these are still under way."""

    events: deque[Event] = field(default_factory=deque)
    num_open: int = 0

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
    """Turns `Engine.step` into blocking iterators of events, one a request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._engine_lock = threading.Lock()
        self._changed = threading.Condition()
        self._tickets: dict[int, Ticket] = {}
        self._driving = False
        self._doomed: deque[int] = deque()

    @contextmanager
    def _holding_engine(self) -> Iterator[None]:
        """Have the engine for oneself; what was cancelled meanwhile is forgotten afterwards."""
        try:
            with self._engine_lock:
                yield
        finally:
            self._forget_doomed()

    def _forget_doomed(self) -> None:
        """Carry out cancellations, unless somebody holds the engine, who then does it.

        A stream may be dropped, and so cancelled, by the garbage collector in the middle of a step of the same thread:
        so cancelling never waits for the engine and never touches it under its feet.
        """
        while self._doomed and self._engine_lock.acquire(blocking=False):
            try:
                while self._doomed:
                    self.engine.cancel(self._doomed.popleft())
            finally:
                self._engine_lock.release()

    def submit(self, requests: Sequence[Request]) -> list[Ticket]:
        """Queue requests together; all or none.

        Raises:
            PromptError, OptionError, CapacityError: see Engine.submit.
        """
        tickets: list[Ticket] = []
        event_queue = EventQueue()
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
        """Queue requests of which nobody sees anything before all are over: see `submit`.

        Long prompts go first. Sequences of about one length then lie side by side and are attended in fewer calls, and
        the last passes over prompts, which most of the others wait for, are short.
        """
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].prompt))
        tickets = self.submit([requests[index] for index in order])
        return [ticket for _, ticket in sorted(zip(order, tickets, strict=True), key=itemgetter(0))]

    def cancel(self, ticket: Ticket) -> None:
        """Forget a request and free its memory, at the latest behind the step under way; one over is no error."""
        if ticket.over:
            return
        self._doomed.append(ticket.number)
        self._forget_doomed()
        with self._changed:
            self._end(ticket, Failed(request=ticket.number, error=CancelledRequest("the request was cancelled")))
            self._changed.notify_all()

    def events(self, tickets: Sequence[Ticket]) -> Iterator[Event]:
        """Yield the events of requests submitted together, until each is over. Leaving early cancels the rest."""
        try:
            while tickets and not tickets[0].event_queue.is_done:
                yield self.wait(tickets[0].event_queue)
        finally:
            for ticket in tickets:
                self.cancel(ticket)

    def finish(self, requests: Sequence[Request]) -> list[Finished]:
        """Run requests together to their end and return their results in order.

        Raises:
            Exception: the first error of one of them, which cancels the others; or as `submit`.
        """
        return self.collect(self.submit(requests))

    def collect(self, tickets: Sequence[Ticket], finished: Callable[[], object] = lambda: None) -> list[Finished]:
        """Wait for requests that were submitted together and return their results in order.

        Args:
            tickets: of `submit` or `submit_whole`.
            finished: called once per request, when it ends.

        Raises:
            Exception: the first error of one of them, which cancels the others.
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
        """Return the mailbox's next event, driving the engine where no other thread does; it must not be done."""
        while True:
            with self._changed:
                while not event_queue.events and self._driving:
                    self._changed.wait()
                if event_queue.events:
                    return event_queue.events.popleft()
                assert event_queue.num_open, "nothing is under way that could bring an event"
                self._driving = True
            self._drive()

    def _drive(self) -> None:
        """Run one step and hand its events out."""
        events: Sequence[Event] = ()
        try:
            with self._holding_engine():
                events = self.engine.step()
            if self.engine.is_stalled:
                time.sleep(_PATIENCE)
        except BaseException as error:
            # An interrupt may fall anywhere inside the step, so nothing that runs can be trusted to go on.
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
            # Read once: what is submitted as soon as the engine is free again is not to be failed.
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
            ticket.event_queue.events.append(event)
        else:
            self._end(ticket, event)

    def _end(self, ticket: Ticket, event: Finished | Failed) -> None:
        if not ticket.over:
            ticket.event_queue.events.append(event)
            ticket.event_queue.num_open -= 1
            ticket.over = True
            self._tickets.pop(ticket.number, None)

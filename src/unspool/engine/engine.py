"""The one loop: every request, every strategy, one forward pass a step.

`step()` reads as its phases: admit, plan, forward, select, advance, emit. It knows no text, no clock but the one it is
given, and no thread: drivers call it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from unspool.adapters import as_criterion, as_strategy
from unspool.engine.answer import Answers, answer
from unspool.engine.branches import RowRef
from unspool.engine.conversation import Conversation
from unspool.engine.locked_runtime import locked
from unspool.engine.prefix_admission import PrefixError
from unspool.engine.request import Request
from unspool.engine.scheduler import Planned, Scheduler, Waiting
from unspool.engine.validate import check_limit, context_of
from unspool.processors import DEFAULT_ORDER, PROCESSORS
from unspool.processors.rows import FORBIDDEN
from unspool.protocols import Runtime
from unspool.types import Event, Failed, Rows

MAX_BATCH_TOKENS = 256
"""On a CPU, a larger pass reads no faster (GPT-2 in float32: 12 % slower at 512; a Llama in bfloat16: 5 % faster), and
requests that write wait for it twice as long."""

_MAX_DRAFT_ROUNDS = 1000
"""Rounds of draft passes and second looks before the model's own pass comes, whatever strategies still ask."""

# One count for all engines, since a draft model may serve several.
_SEQS = itertools.count()


@dataclass(slots=True)
class Timing:
    """Seconds spent since the engine was made, in three parts, and how many steps and passes they paid for.

    forward: inside the models. vocabulary: processors and selection. bookkeeping: scheduling, conversation, events.
    passes: of the model; draft_passes: of draft models.
    """

    forward: float = 0.0
    vocabulary: float = 0.0
    bookkeeping: float = 0.0
    steps: int = 0
    passes: int = 0
    draft_passes: int = 0


class Engine:
    """Runs requests on a runtime, all live branches of all requests in one forward pass a step.

    Args:
        runtime: the model.
        max_batch_tokens: most tokens of one pass that prompts may fill, at least 1.
        clock: seconds, monotonic; for `max_time`.

    Raises:
        OptionError: `max_batch_tokens` is no integer of at least 1.
    """

    def __init__(
        self,
        runtime: Runtime,
        *,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_limit("max_batch_tokens", max_batch_tokens)
        self.runtime = runtime
        self.timing = Timing()
        self._clock = clock
        self._model = locked(runtime)
        self._scheduler = Scheduler(self._model, max_batch_tokens)
        self._running: dict[int, Conversation] = {}
        self._numbers = itertools.count()

    # --- in and out ---------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> int:
        """Queue a request and return its number.

        Raises:
            PromptError: the prompt is empty, holds ids outside the vocabulary, or leaves the model no room.
            OptionError: an option does not fit the model, or the prompt.
            CapacityError: the request needs more memory than it could ever be given.
        """
        request = _adapted(request)
        context = context_of(request, self.runtime.info)
        request.strategy.check(context)
        for name in set(request.config.processor_order or DEFAULT_ORDER) - {"user"}:
            PROCESSORS[name].start(context)  # which may find fault with its options
        number = next(self._numbers)
        self._scheduler.enqueue(Waiting(number, request, context))
        return number

    def cancel(self, number: int) -> None:
        """Forget a request, queued or running, and free its memory. A finished one is no error."""
        conversation = self._running.pop(number, None)
        try:
            if conversation is not None:
                conversation.release()
        finally:
            self._scheduler.forget(number)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._running and not self._scheduler.num_waiting

    @property
    def is_stalled(self) -> bool:
        """Whether all that waits waits for memory that another engine's requests hold on a shared draft model."""
        return not self._running and bool(self._scheduler.num_waiting)

    def step(self) -> list[Event]:
        """Run one step and return what came of it; an idle engine returns nothing."""
        started = time.perf_counter()
        spent = self.timing.forward + self.timing.vocabulary
        events = self._admit()
        events += self._draft_phase()
        planned = self._plan(self._model, events)
        events += self._forward(planned)
        events += self._advance(self._select())
        self.timing.steps += 1
        elapsed = time.perf_counter() - started
        self.timing.bookkeeping += elapsed - (self.timing.forward + self.timing.vocabulary - spent)
        return events

    # --- the phases ---------------------------------------------------------------------------------------------

    def _admit(self) -> list[Event]:
        """Start the conversations of requests that have memory now."""
        events: list[Event] = []
        for number, request, context in self._scheduler.admit():
            try:
                conversation = Conversation(number, request, context, self._model, lambda: next(_SEQS))
                if request.config.max_time is not None:
                    conversation.deadline = self._clock() + request.config.max_time
                self._running[number] = conversation
                events += self._settle(conversation, conversation.begin())
            except Exception as error:
                events.append(self._fail(number, error))
        return events

    def _draft_phase(self) -> list[Event]:
        """Serve everything that needs no pass of the model: draft passes of all requests together, and second looks."""
        events: list[Event] = []
        for _ in range(_MAX_DRAFT_ROUNDS):
            drafts = list(dict.fromkeys(each.request.assistant for each in self._running.values()))
            planned = [self._plan(draft, events, drafts=True) for draft in drafts if draft is not None]
            for feeds in planned:
                events += self._forward(feeds)
            answers = self._select()
            if not answers and not any(planned):
                break
            events += self._advance(answers)
        return events

    def _plan(self, runtime: Runtime, events: list[Event], *, drafts: bool = False) -> list[Planned]:
        """Return the feeds of a runtime's next pass; whose sequence cannot begin is failed and left out."""
        while True:
            try:
                return self._scheduler.plan(self._running.values(), runtime, drafts=drafts)
            except PrefixError as error:
                assert isinstance(error.__cause__, Exception), "an opening fails for a reason"
                events.append(self._fail(error.number, error.__cause__))

    def _forward(self, planned: list[Planned]) -> list[Event]:
        """Run the pass. If it raises, halve it until the guilty request stands alone, and fail that one."""
        if not planned:
            return []
        try:
            rows = self._timed_forward(planned)
        except Exception as error:
            numbers = list(dict.fromkeys(each.conversation.number for each in planned))
            if len(numbers) == 1:
                return [self._fail(numbers[0], error)]
            first = set(numbers[: len(numbers) // 2])
            halves = (
                [each for each in planned if (each.conversation.number in first) is side] for side in (True, False)
            )
            return [event for half in halves for event in self._forward(half)]
        if planned[0].branch.drafts:
            self.timing.draft_passes += 1
        else:
            self.timing.passes += 1
            for conversation in dict.fromkeys(each.conversation for each in planned):
                conversation.passes += 1
        self._take_in(planned, rows)
        return []

    def _timed_forward(self, planned: list[Planned]) -> Rows:
        started = time.perf_counter()
        try:
            rows = planned[0].cached_seq.runtime.forward([each.feed for each in planned])
            return rows._replace(logits=_fitted(rows.logits, self.runtime.info.vocab_size))
        finally:
            self.timing.forward += time.perf_counter() - started

    def _take_in(self, planned: list[Planned], rows: Rows) -> None:
        """Hand a pass's rows to the strands that asked for them, and count what is cached now."""
        row = inner = hidden = 0
        for conversation, branch, cached_seq, feed, lengths in planned:
            start, count = cached_seq.cached, len(feed.tokens)
            cached_seq.cached += count
            cached_seq.source = None
            cached_seq.pending = cached_seq.pending[count:]
            for length in lengths:
                layers = None
                if feed.layers:
                    assert rows.inner is not None, "the runtime left out the inner layers"
                    layers = rows.inner[inner : inner + len(feed.layers)]
                    inner += len(feed.layers)
                cached_seq.rows[length] = RowRef(rows.logits, row, layers)
                row += 1
            if feed.hidden:
                assert rows.hidden is not None, "the runtime left out the hidden states"
                conversation.remember(branch, start, rows.hidden[hidden : hidden + count])
                hidden += count

    def _select(self) -> Answers:
        """Answer the Turns whose rows are all there."""
        behind = {
            each.request.lockstep_group
            for each in self._running.values()
            if each.request.lockstep_group and not each.is_ready
        }
        ready = [each for each in self._running.values() if each.request.lockstep_group not in behind and each.is_ready]
        if not ready:
            return {}
        started = time.perf_counter()
        try:
            return answer(ready, self._clock())
        except Exception:
            # A processor or criterion of the user's own raised: answer one by one, so that it fails its owner alone;
            # gangs as a whole, unless it is one of theirs.
            return {
                number: reply
                for party in _lockstep_groups(ready)
                for number, reply in self._answer_alone(party).items()
            }
        finally:
            self.timing.vocabulary += time.perf_counter() - started

    def _answer_alone(self, party: list[Conversation]) -> Answers:
        try:
            return answer(party, self._clock())
        except Exception as error:
            if len(party) == 1:
                return {party[0].number: error}
            return {number: reply for each in party for number, reply in self._answer_alone([each]).items()}

    def _advance(self, answers: Answers) -> list[Event]:
        """Let every answered strategy take its next turn."""
        events: list[Event] = []
        for number, reply in answers.items():
            conversation = self._running[number]
            if isinstance(reply, Exception):
                events.append(self._fail(number, reply))
                continue
            try:
                events += self._settle(conversation, conversation.reply(*reply))
            except Exception as error:
                events.append(self._fail(number, error))
        return events

    def _settle(self, conversation: Conversation, events: Sequence[Event]) -> list[Event]:
        """Emit what a turn committed, and the end of a conversation that is over."""
        if conversation.outcome is None:
            return list(events)
        finished = conversation.finished()
        self.cancel(conversation.number)
        return [*events, finished]

    def _fail(self, number: int, error: Exception) -> Failed:
        """End one request with its error; the others go on."""
        self.cancel(number)
        return Failed(request=number, error=error)

    # --- for tests and drivers ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        for conversation in self._running.values():
            conversation.check()
        assert self._scheduler.num_reserved == len(self._running), "a reservation without a request"


def _lockstep_groups(conversations: Sequence[Conversation]) -> list[list[Conversation]]:
    """Return who must be answered together: each by itself, and gangs."""
    parties: dict[object, list[Conversation]] = {}
    for each in conversations:
        parties.setdefault(each.request.lockstep_group or each, []).append(each)
    return list(parties.values())


def _fitted(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return a draft model's rows in the model's width: one vocabulary may be padded to different sizes."""
    width = logits.shape[-1]
    if width == vocab_size:
        return logits
    if width > vocab_size:
        return logits[:, :vocab_size]
    return torch.nn.functional.pad(logits, (0, vocab_size - width), value=FORBIDDEN)


def _adapted(request: Request) -> Request:
    """Return the request with all objects as instances of the base classes, and its draft model guarded."""
    return replace(
        request,
        strategy=as_strategy(request.strategy),
        criteria=tuple(as_criterion(criterion) for criterion in request.criteria),
        assistant=None if request.assistant is None else locked(request.assistant),
    )

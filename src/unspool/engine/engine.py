"""The decode loop: every request and every strategy, with one forward pass per step.

`step()` reads as its phases: admit, draft phase, plan, forward, select, advance. Knows neither text nor threads, and no
clock but the given one: drivers call it.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from unspool.adapters import as_criterion, as_strategy
from unspool.engine.answer import Answers, answer
from unspool.engine.branches import CachedSequence, RowRef
from unspool.engine.conversation import Conversation
from unspool.engine.locked_runtime import locked
from unspool.engine.prefix_admission import PrefixError
from unspool.engine.prompt_rows import prompt_rows
from unspool.engine.request import Request
from unspool.engine.scheduler import Planned, Scheduler, Waiting
from unspool.engine.validate import check_limit, context_of
from unspool.processors import DEFAULT_ORDER, PROCESSORS
from unspool.processors.rows import FORBIDDEN
from unspool.protocols import Runtime
from unspool.records import Recording
from unspool.tuning import MAX_BATCH_TOKENS
from unspool.types import Ask, Event, Failed, Rows

_MAX_DRAFT_ROUNDS = 1000
"""Most rounds of draft passes and re-queries before the model's own pass, so that no strategy can block the others."""

# One counter for all engines, because several engines can share a draft model.
_SEQS = itertools.count()


@dataclass(slots=True)
class Timing:
    """Seconds since the engine was made, in three parts, and the number of steps and passes.

    forward: in the models. vocabulary: in processors and the sampler. bookkeeping: in everything else, such as
    scheduling, strategies and events. passes: of the model. draft_passes: of draft models.
    """

    forward: float = 0.0
    vocabulary: float = 0.0
    bookkeeping: float = 0.0
    steps: int = 0
    passes: int = 0
    draft_passes: int = 0


class Engine:
    """Runs requests on a runtime: each step batches all live branches of all requests into one forward pass.

    Not thread-safe: `Driver` shares an engine among threads.

    Args:
        runtime: the model.
        max_batch_tokens: most tokens of one pass that prompts can fill, at least 1.
        clock: returns monotonic seconds; for `max_time`.

    Attributes:
        runtime: the model, as given.
        timing: seconds, steps and passes so far.

    Raises:
        OptionError: if `max_batch_tokens` is not an integer of at least 1.
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
            PromptError: if the prompt is empty, has ids outside the vocabulary, or leaves no room for a new token.
            OptionError: if an option does not fit the model or the prompt, or the strategy's `check` refuses it.
            CapacityError: if the request needs more memory than the limits of its models ever allow.
        """
        request = _adapted(request)
        context = context_of(request, self.runtime.info)
        request.strategy.check(context)
        for name in set(request.config.processor_order or DEFAULT_ORDER) - {"user"}:
            PROCESSORS[name].start(context)  # raises if its options do not fit the request
        number = next(self._numbers)
        self._scheduler.enqueue(Waiting(number, request, context))
        return number

    def cancel(self, number: int) -> None:
        """Remove a queued or running request and free its memory. Does nothing for a finished one."""
        conversation = self._running.pop(number, None)
        try:
            if conversation is not None:
                conversation.release()
        finally:
            self._scheduler.forget(number)

    def _recording(self, number: int, first_step: int = 0) -> Recording | None:
        """Return the trace recording so far of a running request; None if it is not running or not traced.

        Args:
            first_step: leaves out the steps before this index. Nodes are always complete.
        """
        conversation = self._running.get(number)
        if conversation is None or conversation.recorder is None:
            return None
        return conversation.recorder.trace(first_step)

    @property
    def idle(self) -> bool:
        """True if there are neither running nor waiting requests."""
        return not self._running and not self._scheduler.num_waiting

    @property
    def is_stalled(self) -> bool:
        """True if no request can start because another engine holds the draft model's memory."""
        return not self._running and bool(self._scheduler.num_waiting)

    @property
    def cache_usage(self) -> float:
        """Share of the KV cache's limit that running requests reserve, from 0 to 1; 0 without a limit."""
        return self._model.usage

    def step(self) -> list[Event]:
        """Run one step.

        Returns:
            In order of occurrence: `Committed` for new final tokens, `Tentative` for a new preview, and one `Finished`
            or `Failed` per request that ended. Empty if the engine is idle.
        """
        timing, started = self.timing, time.perf_counter()
        elsewhere = timing.forward + timing.vocabulary
        events = self._admit()
        events += self._draft_phase()
        planned = self._plan(self._model, events)
        events += self._forward(planned)
        answers = self._select()
        events += self._advance(answers)
        timing.steps += 1
        timing.bookkeeping += time.perf_counter() - started - (timing.forward + timing.vocabulary - elsewhere)
        return events

    # --- phases -------------------------------------------------------------------------------------------------

    def _admit(self) -> list[Event]:
        """Start the requests that have memory now."""
        events: list[Event] = []
        for number, request, context in self._scheduler.admit():
            try:
                conversation = Conversation(number, request, context, self._model, lambda: next(_SEQS))
                if request.config.max_time is not None:
                    conversation.deadline = self._clock() + request.config.max_time
                self._running[number] = conversation
                events += self._with_finished(conversation, conversation.begin())
            except Exception as error:
                events.append(self._fail(number, error))
        return events

    def _draft_phase(self) -> list[Event]:
        """Serve draft models, in passes for all requests together, and re-queries, until only the model is needed."""
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
        """Return the feeds of a runtime's next pass. Fails requests if their prefix-cache lookup raises."""
        while True:
            try:
                return self._scheduler.plan(self._running.values(), runtime, drafts=drafts)
            except PrefixError as error:
                assert isinstance(error.__cause__, Exception), "a prefix error has a cause"
                events.append(self._fail(error.number, error.__cause__))

    def _forward(self, planned: list[Planned]) -> list[Event]:
        """Run the pass. If it raises, halve it until the faulty request is alone, and fail that request."""
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
            logits = _fitted(rows.logits, self.runtime.info.vocab_size)
            return rows if logits is rows.logits else rows._replace(logits=logits)
        finally:
            self.timing.forward += time.perf_counter() - started

    def _take_in(self, planned: list[Planned], rows: Rows) -> None:
        """Give the rows of a pass to the sequences that asked for them, and update their cached lengths."""
        row = inner = hidden = 0
        in_prompt: list[tuple[CachedSequence, int, Ask, int]] = []
        for conversation, branch, cached_seq, feed, lengths in planned:
            conversation.open_turn.rows_arrived()
            start, count = cached_seq.cached, len(feed.tokens)
            num_own = min(count, len(cached_seq.pending))
            cached_seq.cached += num_own
            cached_seq.source = None
            del cached_seq.pending[:num_own]
            cached_seq.ahead = tuple(feed.tokens[num_own:])
            for length in lengths:
                layers = None
                if feed.layers:
                    assert rows.inner is not None, "the runtime left out the inner layers"
                    layers = rows.inner[inner : inner + len(feed.layers)]
                    inner += len(feed.layers)
                if length >= 0:
                    cached_seq.rows[length] = RowRef(rows.logits, row, layers)
                else:
                    in_prompt += (
                        (cached_seq, length, ask, row) for ask in conversation.open_turn.prompt_asks(branch, length)
                    )
                row += 1
            if feed.hidden:
                assert rows.hidden is not None, "the runtime left out the hidden states"
                conversation.tree.remember(branch, start, rows.hidden[hidden : hidden + count])
                hidden += count
        if in_prompt:
            self._answer_in_prompt(rows.logits, in_prompt)

    def _answer_in_prompt(self, logits: torch.Tensor, asked: list[tuple[CachedSequence, int, Ask, int]]) -> None:
        """Give the answers about prompt positions to their sequences; their rows of logits are then freed."""
        started = time.perf_counter()
        answers = prompt_rows(logits, [(ask, row) for _, _, ask, row in asked])
        for (cached_seq, length, ask, _), found in zip(asked, answers, strict=True):
            cached_seq.prompt_rows.setdefault(length, {})[ask] = found
        self.timing.vocabulary += time.perf_counter() - started

    def _select(self) -> Answers:
        """Answer the turns of requests that have all their rows; a lockstep group waits for its slowest member."""
        behind = {
            each.request.lockstep_group
            for each in self._running.values()
            if each.request.lockstep_group and not each.open_turn.is_ready
        }
        ready = [
            each
            for each in self._running.values()
            if each.request.lockstep_group not in behind and each.open_turn.is_ready
        ]
        if not ready:
            return {}
        started = time.perf_counter()
        try:
            return answer(ready, self._clock())
        except Exception:
            # A user's processor or criterion raised: answer each request alone, so that only its owner fails. Lockstep
            # groups stay together unless one of their members raised.
            return {
                number: reply
                for group in _lockstep_groups(ready)
                for number, reply in self._answer_alone(group).items()
            }
        finally:
            self.timing.vocabulary += time.perf_counter() - started

    def _answer_alone(self, group: list[Conversation]) -> Answers:
        try:
            return answer(group, self._clock())
        except Exception as error:
            if len(group) == 1:
                return {group[0].number: error}
            return {number: reply for each in group for number, reply in self._answer_alone([each]).items()}

    def _advance(self, answers: Answers) -> list[Event]:
        """Send each strategy its reply, and apply its next turn."""
        events: list[Event] = []
        for number, reply in answers.items():
            conversation = self._running[number]
            if isinstance(reply, Exception):
                events.append(self._fail(number, reply))
                continue
            try:
                events += self._with_finished(conversation, conversation.reply(*reply))
            except Exception as error:
                events.append(self._fail(number, error))
        return events

    def _with_finished(self, conversation: Conversation, events: Sequence[Event]) -> list[Event]:
        """Return the events of a turn, and `Finished` if the request is over; its memory is then free."""
        if conversation.outcome is None:
            return list(events)
        finished = conversation.finished()
        self.cancel(conversation.number)
        return [*events, finished]

    def _fail(self, number: int, error: Exception) -> Failed:
        """End one request with its error; the other requests continue."""
        self.cancel(number)
        return Failed(request=number, error=error)

    # --- for tests and drivers ----------------------------------------------------------------------------------

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        for conversation in self._running.values():
            conversation.check()
        assert self._scheduler.num_reserved == len(self._running), "a reservation without a request"


def _lockstep_groups(conversations: Sequence[Conversation]) -> list[list[Conversation]]:
    """Return the requests that must be answered together: each lockstep group, and each other request alone."""
    groups: dict[object, list[Conversation]] = {}
    for each in conversations:
        groups.setdefault(each.request.lockstep_group or each, []).append(each)
    return list(groups.values())


def _fitted(logits: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return a draft model's logits with the model's width: models can pad the same vocabulary to different sizes."""
    width = logits.shape[-1]
    if width == vocab_size:
        return logits
    if width > vocab_size:
        return logits[:, :vocab_size]
    return torch.nn.functional.pad(logits, (0, vocab_size - width), value=FORBIDDEN)


def _adapted(request: Request) -> Request:
    """Return the request with its objects as instances of the base classes, and its draft model locked."""
    return replace(
        request,
        strategy=as_strategy(request.strategy),
        criteria=tuple(as_criterion(criterion) for criterion in request.criteria),
        assistant=None if request.assistant is None else locked(request.assistant),
    )

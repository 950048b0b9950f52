"""The scheduler (continuous batching): admits requests when their memory is free, and plans the next forward pass.

A pass decodes all running sequences and reads prompts in chunks (chunked prefill). It needs no preemption,
because memory is reserved for the worst case. Knows lengths and budgets; knows neither tensors nor text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import NamedTuple

from unspool.engine.branches import Branch, CachedSequence
from unspool.engine.conversation import Conversation
from unspool.engine.locked_runtime import LockedRuntime, locked
from unspool.engine.open_turn import Missing
from unspool.engine.prefix_admission import PrefixAdmission
from unspool.engine.request import Request
from unspool.errors import CapacityError
from unspool.protocols import Context, Runtime
from unspool.types import Feed


class Waiting(NamedTuple):
    """A validated request in the queue, without reserved memory."""

    number: int
    request: Request
    context: Context


class Planned(NamedTuple):
    """One feed of the next pass, the sequence it extends, and the lengths of its asked rows."""

    conversation: Conversation
    branch: Branch
    cached_seq: CachedSequence
    feed: Feed
    lengths: Sequence[int]


class Need(NamedTuple):
    """The most sequences and cached tokens that a request can ever hold on one runtime."""

    runtime: LockedRuntime
    sequences: int
    tokens: int


def _together(needs: Iterable[Need]) -> list[Need]:
    """Return one need per runtime."""
    found: dict[int, Need] = {}
    for need in needs:
        _, sequences, tokens = found.get(id(need.runtime), Need(need.runtime, 0, 0))
        found[id(need.runtime)] = Need(need.runtime, sequences + need.sequences, tokens + need.tokens)
    return list(found.values())


def _reserve(needs: list[Need]) -> bool:
    """Reserve memory for all needs, at most one per runtime, or for none of them; returns True for all."""
    for index, need in enumerate(needs):
        if not need.runtime.reserve(need.sequences, need.tokens):
            for done in needs[:index]:
                done.runtime.reserve(-done.sequences, -done.tokens)
            return False
    return True


def _is_invariant(conversation: Conversation, branch: Branch) -> bool:
    """Return True if a branch's rows must be batch-invariant."""
    return bool(conversation.request.config.batch_invariant) and not branch.drafts


class Scheduler:
    """First come, first served. Each request reserves its worst-case memory, so that a running request never starves.

    Args:
        runtime: of the model. The limits in its info and in the draft model's info bound the reservations.
        max_batch_tokens: token budget of one pass. Decoding requests always take part in a pass; prompts share the rest
            of the budget, in chunks.
    """

    def __init__(self, runtime: LockedRuntime, max_batch_tokens: int) -> None:
        self._runtime = runtime
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[Waiting] = deque()
        self._reserved: dict[int, list[Need]] = {}

    def needs(self, request: Request, context: Context) -> list[Need]:
        """Return the worst-case memory of a request, on the model and on its draft model."""
        branches = request.strategy.max_branches(request.config)
        prompts = [request.prompt] + ([request.negative_prompt] if request.negative_prompt is not None else [])
        tokens = sum(len(prompt) + context.max_new_tokens for prompt in prompts)
        needs = [Need(self._runtime, branches * len(prompts), branches * tokens)]
        if request.assistant is not None:
            drafted = len(request.prompt) + context.max_new_tokens
            longest = request.assistant.info.max_length
            drafted = drafted if longest is None else min(drafted, longest)
            needs.append(Need(locked(request.assistant), branches, branches * drafted))
        return needs

    def enqueue(self, waiting: Waiting) -> None:
        """Queue a request.

        Raises:
            CapacityError: if it does not fit into the limits even alone, or together with its lockstep group.
        """
        lockstep_group = waiting.request.lockstep_group
        ahead = (
            [each for each in self._waiting if each.request.lockstep_group is lockstep_group]
            if lockstep_group is not None
            else []
        )
        needs = [need for each in (*ahead, waiting) for need in self.needs(each.request, each.context)]
        for runtime, sequences, tokens in _together(needs):
            info = runtime.info
            if info.max_sequences is not None and sequences > info.max_sequences:
                raise CapacityError(
                    f"the request needs {sequences} sequences at once and {info.name} holds at most "
                    f"{info.max_sequences}; ask for fewer beams or sequences, or load the model with a larger "
                    "`max_sequences`"
                )
            if info.max_tokens is not None and tokens > info.max_tokens:
                raise CapacityError(
                    f"the request needs a cache of {tokens} tokens ({sequences} sequences, prompt and `max_new_tokens` "
                    f"together) and the limit of {info.name} is {info.max_tokens}; lower `max_new_tokens`, ask for "
                    "fewer sequences, or load the model with a larger `max_cache_tokens`"
                )
        self._waiting.append(waiting)

    def admit(self) -> list[Waiting]:
        """Return the requests that can start now, in order of arrival. A lockstep group starts as a whole."""
        admitted = []
        while self._waiting:
            group = self._lockstep_group(self._waiting[0])
            needs = {each.number: self.needs(each.request, each.context) for each in group}
            if not _reserve(_together(need for several in needs.values() for need in several)):
                break
            for _ in group:
                self._waiting.popleft()
            self._reserved.update(needs)
            admitted += group
        return admitted

    def _lockstep_group(self, first: Waiting) -> list[Waiting]:
        """Return the first waiting request with the rest of its lockstep group."""
        if first.request.lockstep_group is None:
            return [first]
        return list(takewhile(lambda each: each.request.lockstep_group is first.request.lockstep_group, self._waiting))

    def forget(self, number: int) -> None:
        """Free a request's reservation, or remove it from the queue."""
        reserved = self._reserved.pop(number, None)
        for need in reserved or ():
            need.runtime.reserve(-need.sequences, -need.tokens)
        if reserved is None and any(waiting.number == number for waiting in self._waiting):
            self._waiting = deque(waiting for waiting in self._waiting if waiting.number != number)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_reserved(self) -> int:
        return len(self._reserved)

    def plan(self, running: Iterable[Conversation], runtime: Runtime, *, drafts: bool = False) -> list[Planned]:
        """Return the feeds of a runtime's next pass: first of decoding sequences, then of prompts within the budget.

        Prompts reuse cached prefixes. They stay in order, except that a prompt can wait for an earlier one with the
        same prefix; the next prompt then takes its turn.

        Args:
            running: all running requests, in order of arrival.
            runtime: of the pass.
            drafts: True plans draft branches, False the others. A model can be its own draft model.

        Raises:
            PrefixError: if a request's prefix-cache lookup raises; plan again without that request.
        """
        asked = [
            (conversation, each)
            for conversation in running
            for each in conversation.open_turn.missing
            if each.branch.drafts is drafts and each.cached_seq.runtime is runtime
        ]
        planned = [
            self._feed(conversation, each, len(each.cached_seq.pending))
            for conversation, each in asked
            if each.cached_seq.has_prompt
        ]
        if len(planned) == len(asked):
            return planned
        # Prompts get at least a quarter of the budget, so that decoding sequences cannot block them.
        free = self._max_batch_tokens - sum(len(each.feed.tokens) for each in planned)
        budget = max(free, self._max_batch_tokens // 4, 1)
        num_writing = len(planned)
        prefix_admission = PrefixAdmission()
        for conversation, missing in asked:
            if budget <= 0:
                break
            branch, cached_seq, _ = missing
            invariant = _is_invariant(conversation, branch)
            if cached_seq.has_prompt or prefix_admission.should_wait(
                conversation, branch, cached_seq, invariant=invariant
            ):
                continue
            count = self._chunk(cached_seq, budget, invariant=invariant, first=len(planned) == num_writing)
            if count == 0:
                break  # the next prompt must not overtake this one
            planned.append(self._feed(conversation, missing, count))
            prefix_admission.note(cached_seq, invariant=invariant)
            budget -= count
        return planned

    def _chunk(self, cached_seq: CachedSequence, budget: int, *, invariant: bool, first: bool) -> int:
        """Return the number of pending tokens to feed now; 0 for none.

        A batch-invariant request is fed in full chunks only, so that other requests never change its chunks. A prompt
        with a source is one chunk; for some models every prompt is. The first prompt of a pass always gets a chunk, so
        that every pass makes progress.
        """
        whole = cached_seq.runtime.info.reads_whole or cached_seq.source is not None
        count = len(cached_seq.pending) if whole else min(len(cached_seq.pending), self._max_batch_tokens)
        if invariant or whole:
            return count if first or count <= budget else 0
        return min(count, budget)

    def _feed(self, conversation: Conversation, missing: Missing, count: int) -> Planned:
        branch, cached_seq, wanted = missing
        start = cached_seq.cached - len(cached_seq.prompt)
        lengths = [length for length in wanted if start < length <= start + count]
        tokens = cached_seq.pending[:count]
        if conversation.forced_tokens and cached_seq.has_prompt and count == len(cached_seq.pending):
            tokens += conversation.forced_tokens
            lengths += range(start + count + 1, start + len(tokens) + 1)
        is_main = cached_seq is branch.main and not branch.drafts
        feed = Feed(
            seq=cached_seq.seq,
            tokens=tokens,
            asked=tuple([length - start - 1 for length in lengths]),
            hidden=conversation.hidden is not None and is_main,
            layers=conversation.context.layers if lengths and is_main else (),
            invariant=_is_invariant(conversation, branch),
            source=cached_seq.source,
            salt=cached_seq.salt,
        )
        return Planned(conversation, branch, cached_seq, feed, lengths)

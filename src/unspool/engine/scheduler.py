"""Who is admitted, and what the next forward pass holds. Knows lengths and budgets, neither tensors nor text."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from unspool.engine.branches import Branch
from unspool.engine.conversation import Conversation
from unspool.engine.request import Request
from unspool.errors import CapacityError
from unspool.protocols import Context
from unspool.types import Feed, ModelInfo


class Waiting(NamedTuple):
    """A validated request that has no memory yet."""

    number: int
    request: Request
    context: Context


class Planned(NamedTuple):
    """One feed of the next pass, the branch it belongs to, and the positions its asked rows stand for."""

    conversation: Conversation
    branch: Branch
    feed: Feed
    positions: tuple[int, ...]


class Scheduler:
    """First come, first served: a request waits until all memory it could ever need is free, so none starves another.

    Args:
        info: of the runtime; its `max_sequences` and `max_tokens` bound what is reserved.
        max_batch_tokens: most tokens of one pass, as far as prompts are concerned: rows of requests that are already
            writing always go, prompts share what they leave, in chunks.
    """

    def __init__(self, info: ModelInfo, max_batch_tokens: int) -> None:
        self._info = info
        self._max_batch_tokens = max_batch_tokens
        self._waiting: deque[Waiting] = deque()
        self._reserved: dict[int, tuple[int, int]] = {}
        self._held = (0, 0)

    def needs(self, request: Request, context: Context) -> tuple[int, int]:
        """Return the most (sequences, cached tokens) a request can come to hold."""
        branches = request.strategy.max_branches(request.config)
        return branches, branches * (len(request.prompt) + context.max_new_tokens)

    def enqueue(self, waiting: Waiting) -> None:
        """Queue a request.

        Raises:
            CapacityError: it could not be held even alone.
        """
        sequences, tokens = self.needs(waiting.request, waiting.context)
        info = self._info
        if info.max_sequences is not None and sequences > info.max_sequences:
            raise CapacityError(
                f"the request needs {sequences} sequences at once and the model holds at most {info.max_sequences}; "
                "ask for fewer beams or sequences, or load the model with a larger `max_sequences`"
            )
        if info.max_tokens is not None and tokens > info.max_tokens:
            raise CapacityError(
                f"the request needs a cache of {tokens} tokens ({sequences} sequences, prompt and `max_new_tokens` "
                f"together) and the limit is {info.max_tokens}; lower `max_new_tokens`, ask for fewer sequences, or "
                "load the model with a larger `max_cache_tokens`"
            )
        self._waiting.append(waiting)

    def admit(self) -> list[Waiting]:
        """Return the requests that may start now, in order of arrival."""
        admitted = []
        while self._waiting and self._fits(self._waiting[0]):
            waiting = self._waiting.popleft()
            self._reserved[waiting.number] = self.needs(waiting.request, waiting.context)
            self._reserve(*self._reserved[waiting.number])
            admitted.append(waiting)
        return admitted

    def _fits(self, waiting: Waiting) -> bool:
        needs = self.needs(waiting.request, waiting.context)
        limits = (self._info.max_sequences, self._info.max_tokens)
        return all(
            limit is None or have + need <= limit for limit, have, need in zip(limits, self._held, needs, strict=True)
        )

    def _reserve(self, sequences: int, tokens: int) -> None:
        self._held = (self._held[0] + sequences, self._held[1] + tokens)

    def forget(self, number: int) -> None:
        """Free a request's reservation, or take it out of the queue."""
        reserved = self._reserved.pop(number, None)
        if reserved is not None:
            self._reserve(-reserved[0], -reserved[1])
        elif any(waiting.number == number for waiting in self._waiting):
            self._waiting = deque(waiting for waiting in self._waiting if waiting.number != number)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_reserved(self) -> int:
        return len(self._reserved)

    def plan(self, running: list[Conversation]) -> list[Planned]:
        """Return the feeds of the next pass: all rows of requests that write, then prompts within the budget."""
        asked = [(each, branch) for each in running for branch in each.asked_branches() if each.wanted(branch)]
        writing = [pair for pair in asked if pair[1].cached >= pair[1].prompt_len]
        planned = [self._feed(conversation, branch, len(branch.pending)) for conversation, branch in writing]
        # However many rows write, prompts get a share, or they would wait until the writers are done.
        free = self._max_batch_tokens - sum(len(each.feed.tokens) for each in planned)
        budget = max(free, self._max_batch_tokens // 4, 1)
        num_writing = len(planned)
        for conversation, branch in asked:
            if branch.cached >= branch.prompt_len:
                continue
            count = self._chunk(conversation, branch, budget, first=len(planned) == num_writing)
            if count == 0:
                break  # the next prompt must not overtake this one
            planned.append(self._feed(conversation, branch, count))
            budget -= count
        return planned

    def _chunk(self, conversation: Conversation, branch: Branch, budget: int, first: bool) -> int:
        """Return how many pending tokens go now; 0 for none.

        Chunk borders of a batch-invariant request depend on the request alone: whole chunks, or none. The first prompt
        of a pass always gets one, so that whole chunks need not wait for an idle engine.
        """
        pending = len(branch.pending)
        if conversation.request.config.batch_invariant:
            count = min(pending, self._max_batch_tokens)
            return count if first or count <= budget else 0
        return max(min(pending, budget), 0)

    def _feed(self, conversation: Conversation, branch: Branch, count: int) -> Planned:
        start = branch.cached
        positions = tuple(sorted(p for p in conversation.wanted(branch) if start < p <= start + count))
        feed = Feed(
            seq=branch.seq,
            tokens=branch.pending[:count],
            asked=tuple(position - start - 1 for position in positions),
            invariant=bool(conversation.request.config.batch_invariant),
        )
        return Planned(conversation, branch, feed, positions)

"""A runtime behind a lock, for models that several engines share, such as draft models."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from weakref import WeakValueDictionary

from unspool.adapters import as_runtime
from unspool.protocols import Runtime
from unspool.types import Feed, ModelInfo, Rows, Seq

# By the runtime's id. An id stays valid because the entry keeps its runtime alive.
_LOCKED_RUNTIMES: WeakValueDictionary[int, LockedRuntime] = WeakValueDictionary()
_MAKING = threading.Lock()


def locked(runtime: Runtime) -> LockedRuntime:
    """Return the LockedRuntime of a runtime: always the same one. A LockedRuntime is returned as it is."""
    if isinstance(runtime, LockedRuntime):
        return runtime
    with _MAKING:
        found = _LOCKED_RUNTIMES.get(id(runtime))
        if found is None:
            found = _LOCKED_RUNTIMES[id(runtime)] = LockedRuntime(as_runtime(runtime), key=runtime)
        return found


class LockedRuntime(Runtime):
    """A thread-safe Runtime: serializes all calls, and counts the memory that engines reserve."""

    def __init__(self, runtime: Runtime, *, key: object = None) -> None:
        self._runtime, self._key = runtime, key
        self.source = runtime.source
        self.has_prefix_caching, self.in_place = runtime.has_prefix_caching, runtime.in_place
        self._lock = threading.Lock()
        self._sequences = self._tokens = 0

    def reserve(self, sequences: int, tokens: int) -> bool:
        """Reserve memory for sequences and cached tokens, or free it if the numbers are negative.

        The limits bound the sum over all engines. Beyond the soft limits, only one reservation at a time is possible.

        Returns:
            False if there is too little memory; then nothing is reserved.
        """
        with self._lock:
            held, cached, info = self._sequences + sequences, self._tokens + tokens, self.info
            fits = _within(held, info.max_sequences) and _within(cached, info.max_tokens)
            is_usual = _within(held, info.soft_max_sequences) and _within(cached, info.soft_max_tokens)
            has_room = fits and (is_usual or self._sequences == 0)
            if has_room or sequences < 0:
                self._sequences, self._tokens = held, cached
            return has_room

    @property
    def usage(self) -> float:
        """Share of the limit on cached tokens that is reserved, at most 1; 0 without a limit."""
        limit = self.info.soft_max_tokens if self.info.max_tokens is None else self.info.max_tokens
        return 0.0 if limit is None else min(1.0, self._tokens / limit)

    @property
    def info(self) -> ModelInfo:
        return self._runtime.info

    @info.setter
    def info(self, info: ModelInfo) -> None:
        self._runtime.info = info

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """See Runtime.forward."""
        with self._lock:
            return self._runtime.forward(feeds)

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        """See Runtime.match_prefix."""
        with self._lock:
            return self._runtime.match_prefix(seq, tokens, least=least, invariant=invariant, salt=salt)

    def fork(self, seq: Seq, child: Seq) -> None:
        """See Runtime.fork."""
        with self._lock:
            self._runtime.fork(seq, child)

    def truncate(self, seq: Seq, keep: int) -> int:
        """See Runtime.truncate."""
        with self._lock:
            return self._runtime.truncate(seq, keep)

    def release(self, seq: Seq) -> None:
        """See Runtime.release."""
        with self._lock:
            self._runtime.release(seq)


def _within(count: int, limit: int | None) -> bool:
    return limit is None or count <= limit

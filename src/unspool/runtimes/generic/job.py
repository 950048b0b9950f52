"""The work of one feed in the generic runtime, and the cache that a sequence keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from unspool.runtimes.generic.cache_pytree import CacheSlice
from unspool.runtimes.generic.row_buffer import RowBuffer
from unspool.tuning import MAX_EARLIER_STATES
from unspool.types import Feed


@dataclass(frozen=True, slots=True)
class SequenceCache:
    """The cache of one sequence.

    newest: the cache of all its tokens. earlier: caches of fewer tokens, shortest first, if the newest cannot be cut.
    """

    newest: CacheSlice
    earlier: tuple[CacheSlice, ...] = ()

    def shortened(self, keep: int, can_shorten: Callable[[CacheSlice], bool]) -> SequenceCache | None:
        """Return the longest cache of at most `keep` tokens; None if all are longer."""
        if keep == 0:
            return None
        for share in (self.newest, *reversed(self.earlier)):
            if share.length > keep and not can_shorten(share):
                continue
            cut = share._replace(length=min(share.length, keep))
            return SequenceCache(cut, tuple(old for old in self.earlier if old.length < cut.length))
        return None


@dataclass(slots=True)
class Job:
    """Tokens to read for one feed, in one or several calls.

    tokens: the whole sequence, up to the last token to read. asked: positions that need logits. start: first
    position that needs its hidden state. share: the cache so far; None for none. done: number of tokens read so far.
    passed: caches of earlier calls, oldest first. found: the rows so far.
    """

    feed: Feed
    tokens: list[int]
    asked: list[int]
    start: int
    share: CacheSlice | None = None
    done: int = 0
    passed: list[CacheSlice] = field(default_factory=list)
    found: RowBuffer = field(default_factory=RowBuffer)

    @property
    def num_left(self) -> int:
        """Number of tokens still to read."""
        return len(self.tokens) - self.done

    def advance(self, share: CacheSlice | None, done: int) -> None:
        """Go on with another cache. The first of the earlier ones and the newest are kept."""
        if self.share is not None:
            self.passed.append(self.share)
        if len(self.passed) > MAX_EARLIER_STATES:
            del self.passed[1]
        self.share, self.done = share, done

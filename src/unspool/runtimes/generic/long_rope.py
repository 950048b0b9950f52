"""Long rotary embeddings (longrope, dynamic NTK): one runtime up to the original length, another one beyond.

Up to the original length the angles are fixed, and the fast backend runs. Beyond it the angles of all tokens change, so
the cache is invalid. The sequence is then read again: once for "longrope", which has a second set of fixed angles, and
in every forward for "dynamic", which changes its angles with each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unspool.protocols import Runtime
from unspool.runtimes.generic.row_buffer import join_rows, split_rows
from unspool.runtimes.generic.sequence_table import SequenceTable
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import Limit, hard
from unspool.types import Feed, ModelInfo, Rows, Seq


@dataclass(slots=True)
class _Part:
    """The part of a feed for one of the two runtimes.

    skipped: number of its first tokens with hidden states that are not returned.
    """

    feed: Feed
    skipped: int


class LongRopeRuntime(Runtime):
    """Two runtimes over one model: `short` gives the logits after the first n <= original tokens, `long` the others.

    Follows the contract of every Runtime.

    Args:
        short: runs sequences of at most `original` tokens.
        long: runs longer sequences. It gets the first `original` tokens and the next one in one feed, and returns
            logits only after longer prefixes.
        original: the length up to which the first angles hold, in tokens.
        max_length: maximum tokens per sequence; None for no limit.
        max_cache_tokens, max_sequences: limits, see `limits`; the same as those of `short`.
    """

    def __init__(
        self,
        short: Runtime,
        long: Runtime,
        *,
        original: int,
        max_length: int | None,
        max_cache_tokens: Limit = None,
        max_sequences: Limit = None,
    ) -> None:
        self._short, self._long, self._original = short, long, original
        self._table = SequenceTable(max_tokens=hard(max_cache_tokens), max_sequences=hard(max_sequences))
        self._cached: dict[Runtime, dict[Seq, int]] = {short: {}, long: {}}
        first, second = short.info, long.info
        layers = first.num_layers if first.num_layers == second.num_layers else None
        self.info: ModelInfo = replace(
            first,
            max_length=max_length,
            batch_invariant=False,
            batch_invariance_obstacle="its rotary embedding changes with the length",
            hidden_states=first.hidden_states and second.hidden_states,
            num_layers=layers,
            bytes_per_token=_most(first.bytes_per_token, second.bytes_per_token),
            backend=f"up to {original} tokens {first.backend}; beyond, with another rotary embedding, {second.backend}",
        )

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """True if a module of the caller runs, which this runtime then holds."""
        return self._short.in_place or self._long.in_place

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
            ModelError: if a feed brings a source, or needs a capability that `info` excludes.
        """
        check_feeds(self.info, feeds)
        self._table.check_room([(feed.seq, len(feed.tokens)) for feed in feeds])
        parts = [(self._short_part(feed), self._long_part(feed)) for feed in feeds]
        before = {feed.seq: len(self._table.live.get(feed.seq, ())) for feed in feeds}
        try:
            found = [self._run(runtime, [pair[side] for pair in parts]) for side, runtime in enumerate(self._both)]
        except BaseException:
            # The first runtime has read tokens that the next call can replace.
            for seq, length in before.items():
                self._cut(seq, length)
            raise
        for feed in feeds:
            self._table.live[feed.seq] = self._table.grown(feed)
        return self._joined(found, has_layers=any(feed.layers for feed in feeds))

    def _joined(self, found: Sequence[Sequence[Rows | None]], *, has_layers: bool) -> Rows:
        """Return the rows feed by feed, those of `short` first."""
        parts = [rows for pair in zip(*found, strict=True) for rows in pair if rows is not None]
        empty = torch.empty(0, self.info.vocab_size, dtype=torch.float32, device="cpu")
        rows = join_rows(parts) if parts else Rows(empty)
        return rows._replace(inner=empty) if has_layers and rows.inner is None else rows

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
        """
        self._table.fork(seq, child)
        for runtime in self._both:
            if seq in self._cached[runtime]:
                runtime.fork(seq, child)
                self._cached[runtime][child] = self._cached[runtime][seq]

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate."""
        assert keep >= 0, "a sequence cannot keep fewer than 0 tokens"
        del self._table.live[seq][keep:]
        self._cut(seq, keep)
        return len(self._table.live[seq])

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self._table.live.pop(seq, None)
        for runtime in self._both:
            runtime.release(seq)
            self._cached[runtime].pop(seq, None)

    @property
    def _both(self) -> tuple[Runtime, Runtime]:
        return self._short, self._long

    def _cut(self, seq: Seq, keep: int) -> None:
        """Cut both runtimes to the first `keep` tokens; release the long one if it would hold `original` or fewer."""
        for runtime in self._both:
            cached = self._cached[runtime]
            if seq not in cached:
                continue
            floor = self._original if runtime is self._long else 0
            left = runtime.truncate(seq, keep) if keep > floor else 0
            if left > floor:
                cached[seq] = left
            else:
                runtime.release(seq)
                del cached[seq]

    def _short_part(self, feed: Feed) -> _Part | None:
        tokens = self._table.grown(feed)[: self._original]
        return self._part(self._short, feed, tokens, 0)

    def _long_part(self, feed: Feed) -> _Part | None:
        tokens = self._table.grown(feed)
        return self._part(self._long, feed, tokens, self._original) if len(tokens) > self._original else None

    def _part(self, runtime: Runtime, feed: Feed, tokens: list[int], floor: int) -> _Part | None:
        """Return the feed for a runtime: the tokens it lacks, with the asked positions from `floor` on."""
        start = len(self._table.live.get(feed.seq, ()))
        cached = self._cached[runtime].get(feed.seq, 0)
        if cached >= len(tokens):
            return None
        asked = tuple(start + index - cached for index in feed.asked if floor <= start + index < len(tokens))
        wanted = replace(feed, tokens=tokens[cached:], asked=asked, layers=feed.layers if asked else ())
        return _Part(wanted, max(start, floor) - cached)

    def _run(self, runtime: Runtime, parts: Sequence[_Part | None]) -> list[Rows | None]:
        """Run the parts that are not None. Returns the rows of each part."""
        feeds = [part.feed for part in parts if part is not None]
        if not feeds:
            return [None for _ in parts]
        rows = iter(split_rows(runtime.forward(feeds), feeds))
        cached = self._cached[runtime]
        for feed in feeds:
            cached[feed.seq] = cached.get(feed.seq, 0) + len(feed.tokens)
        return [None if part is None else _without_first(next(rows), part.skipped) for part in parts]


def _without_first(rows: Rows, skipped: int) -> Rows:
    return rows if rows.hidden is None else rows._replace(hidden=rows.hidden[skipped:])


def _most(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else max(first, second)

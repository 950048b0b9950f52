"""A model whose rotary embedding changes beyond its original length: one runtime up to there, another one behind.

Up to the original length every token is turned by fixed angles, and the fast path serves. Beyond it the angles of all
tokens are others, so what was cached is of no use: the sequence is read again, once for "longrope", whose new angles
are fixed, and in every forward for "dynamic", whose angles change with each token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from unspool.protocols import Runtime
from unspool.runtimes.generic.sequence_table import SequenceTable
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import Limit, hard
from unspool.types import Feed, ModelInfo, Rows, Seq


@dataclass(slots=True)
class _Part:
    """A feed's share in one of the two runtimes.

    skipped: tokens of it before the feed's own whose hidden states nobody wants.
    """

    feed: Feed
    skipped: int


class LongRopeRuntime(Runtime):
    """Two runtimes over one model. What follows the first n tokens comes from `short` for n <= original, else `long`.

    Follows the contract of every Runtime.

    Args:
        short: serves sequences of at most `original` tokens.
        long: serves longer ones; is never asked about what follows `original` tokens or fewer, and is given all tokens
            up to behind `original` at once.
        original: the length where the rotary embedding changes, in tokens.
        max_length: most tokens in one sequence; None for no bound.
        max_cache_tokens, max_sequences: limits, see `limits`; `short` has the same ones.
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
            CapacityError: the limits on tokens or sequences leave no room.
            ModelError: a feed brings a source, or wants what `info` says cannot be had.
        """
        check_feeds(self.info, feeds)
        self._table.check_room([(feed.seq, len(feed.tokens)) for feed in feeds])
        parts = [(self._short_part(feed), self._long_part(feed)) for feed in feeds]
        before = {feed.seq: len(self._table.live.get(feed.seq, ())) for feed in feeds}
        try:
            found = [self._run(runtime, [pair[side] for pair in parts]) for side, runtime in enumerate(self._both)]
        except BaseException:
            # What the first of them has read may not be what is fed next time.
            for seq, length in before.items():
                self._cut(seq, length)
            raise
        for feed in feeds:
            self._table.live[feed.seq] = self._table.grown(feed)
        return _joined(
            found,
            torch.empty(0, self.info.vocab_size, dtype=torch.float32, device="cpu"),
            any(feed.layers for feed in feeds),
        )

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork.

        Raises:
            CapacityError: the limits on tokens or sequences leave no room.
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
        """Let neither runtime hold more than the first `keep` tokens, nor the long one fewer than it may."""
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
        """Return what a runtime is fed of it: what it lacks of `tokens`; asked are positions from `floor` on."""
        start = len(self._table.live.get(feed.seq, ()))
        cached = self._cached[runtime].get(feed.seq, 0)
        if cached >= len(tokens):
            return None
        asked = tuple(start + index - cached for index in feed.asked if floor <= start + index < len(tokens))
        wanted = replace(feed, tokens=tokens[cached:], asked=asked, layers=feed.layers if asked else ())
        return _Part(wanted, max(start, floor) - cached)

    def _run(self, runtime: Runtime, parts: Sequence[_Part | None]) -> list[_Found]:
        """Run the parts there are. Returns what each feed gets of it."""
        there = [part for part in parts if part is not None]
        if not there:
            return [_Found() for _ in parts]
        rows = runtime.forward([part.feed for part in there])
        for part in there:
            cached = self._cached[runtime]
            cached[part.feed.seq] = cached.get(part.feed.seq, 0) + len(part.feed.tokens)
        return _divided(rows, parts)


@dataclass(slots=True)
class _Found:
    """What one runtime brings for one feed; None for nothing."""

    logits: torch.Tensor | None = None
    hidden: torch.Tensor | None = None
    inner: torch.Tensor | None = None


def _divided(rows: Rows, parts: Sequence[_Part | None]) -> list[_Found]:
    found, asked, shown, looks = [], 0, 0, 0
    for part in parts:
        each = _Found()
        if part is not None:
            count = len(part.feed.asked)
            each.logits, asked = rows.logits[asked : asked + count], asked + count
            if part.feed.hidden and rows.hidden is not None:
                stop = shown + len(part.feed.tokens)
                each.hidden, shown = rows.hidden[shown + part.skipped : stop], stop
            if part.feed.layers and rows.inner is not None:
                stop = looks + count * len(part.feed.layers)
                each.inner, looks = rows.inner[looks:stop], stop
        found.append(each)
    return found


def _joined(found: Sequence[Sequence[_Found]], nothing: torch.Tensor, has_layers: bool) -> Rows:
    """Return the rows feed by feed; those of shorter sequences come first in each."""
    pairs = [each for pair in zip(*found, strict=True) for each in pair]
    logits = [each.logits for each in pairs if each.logits is not None]
    hidden = [each.hidden for each in pairs if each.hidden is not None]
    inner = [each.inner for each in pairs if each.inner is not None]
    return Rows(
        torch.cat(logits) if logits else nothing,
        torch.cat(hidden) if hidden else None,
        (torch.cat(inner) if inner else nothing) if has_layers else None,
    )


def _most(first: int | None, second: int | None) -> int | None:
    return None if first is None or second is None else max(first, second)

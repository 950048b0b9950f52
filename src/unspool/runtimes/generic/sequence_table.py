"""The live sequences of a runtime that has no slots: their tokens, and the limits on them. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.errors import CapacityError, ModelError
from unspool.types import Feed, ModelInfo, Seq


class SequenceTable:
    """The tokens of every live sequence.

    Args:
        max_tokens: most tokens over all live sequences; None for no bound.
        max_sequences: most live sequences; None for no bound.
    """

    def __init__(self, *, max_tokens: int | None = None, max_sequences: int | None = None) -> None:
        self.max_tokens, self.max_sequences = max_tokens, max_sequences
        self.live: dict[Seq, list[int]] = {}

    def check_room(self, needs: Sequence[tuple[Seq, int]]) -> None:
        """Raise unless every sequence has room for so many more tokens; unknown ones count as new.

        Raises:
            CapacityError: the limits leave no room.
        """
        total = sum(map(len, self.live.values())) + sum(count for _, count in needs)
        if self.max_tokens is not None and total > self.max_tokens:
            raise CapacityError(f"the cache holds at most {self.max_tokens} tokens; {total} were needed")
        count = len(self.live.keys() | {seq for seq, _ in needs})
        if self.max_sequences is not None and count > self.max_sequences:
            raise CapacityError(f"the cache holds at most {self.max_sequences} sequences; {count} were needed")

    def grown(self, feed: Feed) -> list[int]:
        """Return the tokens of a sequence with those of the feed behind them."""
        return [*self.live.get(feed.seq, ()), *feed.tokens]

    def fork(self, seq: Seq, child: Seq) -> None:
        """Let `child` hold the same tokens.

        Raises:
            CapacityError: the limits leave no room.
        """
        assert child not in self.live, f"sequence {child} exists"
        self.check_room([(child, len(self.live[seq]))])
        self.live[child] = list(self.live[seq])


def check_feeds(info: ModelInfo, feeds: Sequence[Feed]) -> None:
    """Refuse what the model cannot do.

    Raises:
        ModelError: a feed brings a source, or wants what `info` says cannot be had.
    """
    assert len({feed.seq for feed in feeds}) == len(feeds), "two feeds name the same sequence"
    assert all(feed.tokens for feed in feeds), "a feed has no tokens"
    if any(feed.source is not None for feed in feeds):
        raise ModelError(f"{info.name} is a decoder and takes no source")
    if any(feed.invariant for feed in feeds) and not info.batch_invariant:
        reason = info.batch_invariance_obstacle
        raise ModelError(f"{info.name} cannot keep a row independent of other rows: {reason}")
    if any(feed.hidden for feed in feeds) and not info.hidden_states:
        raise ModelError(f"{info.name} does not show what its head reads: hidden states cannot be had")
    if layers := [layer for feed in feeds for layer in feed.layers]:
        if info.num_layers is None:
            raise ModelError(f"{info.name} has no inner layers that its own head can read")
        assert min(layers) >= 0 and max(layers) < info.num_layers, "a feed names a layer that is not there"

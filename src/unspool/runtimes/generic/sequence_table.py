"""The live sequences of a runtime that has no slots: their tokens, and the limits on them. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.runtimes.kv.limits import check_room
from unspool.types import Feed, Seq


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
        check_room(
            num_sequences=len(self.live.keys() | {seq for seq, _ in needs}),
            num_tokens=sum(map(len, self.live.values())) + sum(count for _, count in needs),
            max_sequences=self.max_sequences,
            max_tokens=self.max_tokens,
        )

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

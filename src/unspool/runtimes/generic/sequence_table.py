"""The live sequences of a runtime without slots: their tokens, and the limits on them. Knows no model."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.runtimes.kv.limits import check_room
from unspool.types import Feed, Seq


class SequenceTable:
    """The tokens of every live sequence.

    Args:
        max_tokens: limit on tokens over all live sequences; None for no limit.
        max_sequences: limit on live sequences; None for no limit.
    """

    def __init__(self, *, max_tokens: int | None = None, max_sequences: int | None = None) -> None:
        self.max_tokens, self.max_sequences = max_tokens, max_sequences
        self.live: dict[Seq, list[int]] = {}

    def check_room(self, needs: Sequence[tuple[Seq, int]]) -> None:
        """Check that every sequence has room for this number of new tokens. Unknown sequences count as new.

        Raises:
            CapacityError: if the limits leave no room.
        """
        check_room(
            num_sequences=len(self.live.keys() | {seq for seq, _ in needs}),
            num_tokens=sum(map(len, self.live.values())) + sum(count for _, count in needs),
            max_sequences=self.max_sequences,
            max_tokens=self.max_tokens,
        )

    def grown(self, feed: Feed) -> list[int]:
        """Return the tokens of a sequence, followed by those of the feed."""
        return [*self.live.get(feed.seq, ()), *feed.tokens]

    def fork(self, seq: Seq, child: Seq) -> None:
        """Give `child` the same tokens.

        Raises:
            CapacityError: if the limits leave no room.
        """
        assert child not in self.live, f"sequence {child} exists"
        self.check_room([(child, len(self.live[seq]))])
        self.live[child] = list(self.live[seq])

"""A model that is a table of probabilities: for tests, docs and teaching. Follows the contract of every runtime."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch

from unspool.types import Feed, ModelInfo, Rows, Seq


class ToyRuntime:
    """Answers with the probabilities that a function (or table) gives for the tokens so far.

    Args:
        probabilities: called with all tokens of a sequence, returns one non-negative number a token of the vocabulary;
            or a table from the newest token to such a row. Rows need not sum to 1; 0 is a token that never comes.
        vocab_size: at least 1.
        eos_token_ids, max_length, max_sequences, max_tokens: as in ModelInfo.

    Every forward is noted in `passes` as the lengths of its feeds, so that a test can count work; `cached` shows what
    each live sequence holds. Hidden states are the probabilities themselves.
    """

    def __init__(
        self,
        probabilities: Callable[[tuple[int, ...]], Sequence[float]] | Mapping[int, Sequence[float]],
        vocab_size: int,
        *,
        eos_token_ids: tuple[int, ...] = (),
        max_length: int | None = None,
        max_sequences: int | None = None,
        max_tokens: int | None = None,
    ) -> None:
        self._probabilities = (
            probabilities if callable(probabilities) else lambda tokens, table=probabilities: table[tokens[-1]]
        )
        self.cached: dict[Seq, tuple[int, ...]] = {}
        self.passes: list[tuple[int, ...]] = []
        self.num_forks = 0
        self.info = ModelInfo(
            name="toy",
            vocab_size=vocab_size,
            eos_token_ids=eos_token_ids,
            max_length=max_length,
            max_sequences=max_sequences,
            max_tokens=max_tokens,
            batch_invariant=True,
            path="toy runtime: a table of probabilities",
        )

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and look their rows up; see Runtime.forward."""
        grown = {feed.seq: self.cached.get(feed.seq, ()) + tuple(feed.tokens) for feed in feeds}
        assert len(grown) == len(feeds), "two feeds name the same sequence"
        rows = [
            self._probabilities(grown[feed.seq][: len(grown[feed.seq]) - len(feed.tokens) + index + 1])
            for feed in feeds
            for index in feed.asked
        ]
        table = torch.tensor(rows, dtype=torch.float32).reshape(len(rows), self.info.vocab_size)
        self.cached.update(grown)
        self.passes.append(tuple(len(feed.tokens) for feed in feeds))
        return Rows(table.log(), table if any(feed.hidden for feed in feeds) else None)

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork."""
        assert child not in self.cached, f"sequence {child} exists"
        self.cached[child] = self.cached[seq]
        self.num_forks += 1

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate."""
        self.cached[seq] = self.cached[seq][:keep]
        return len(self.cached[seq])

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self.cached.pop(seq, None)

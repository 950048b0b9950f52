"""ToyRuntime: a table of probabilities instead of a model, for tests, docs and teaching."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch

from unspool.errors import ModelError, OptionError
from unspool.protocols import Runtime
from unspool.types import Feed, ModelInfo, Rows, Seq

Table: TypeAlias = Callable[[tuple[int, ...]], Sequence[float]] | Mapping[int, Sequence[float]]
"""Probabilities of the next token: a function of all tokens so far, or a mapping from the newest token."""


class ToyRuntime(Runtime):
    """A runtime that answers with the probabilities of a function or table.

    Args:
        probabilities: of the next token, one number >= 0 per token of the vocabulary. They need not sum to 1; a token
            with 0 never comes.
        vocab_size: at least 1.
        hidden: the hidden state of the newest token, a vector of any fixed width; None for the probabilities.
        inner: called with all tokens and a layer, returns the probabilities of that layer; None for no inner layers.
        num_layers: the number of layers that `inner` knows, at least 1; None without `inner`.
        eos_token_ids, max_length, max_sequences, max_tokens, tied_head: as in ModelInfo.

    Attributes:
        passes: per forward, the lengths of its feeds, so that a test can count work.
        cached: the tokens of each live sequence.
        num_forks: the number of calls of `fork`.

    Raises:
        OptionError: if only one of `inner` and `num_layers` is given, or if `num_layers` is less than 1.
    """

    def __init__(
        self,
        probabilities: Table,
        vocab_size: int,
        *,
        hidden: Table | None = None,
        inner: Callable[[tuple[int, ...], int], Sequence[float]] | None = None,
        num_layers: int | None = None,
        eos_token_ids: tuple[int, ...] = (),
        max_length: int | None = None,
        max_sequences: int | None = None,
        max_tokens: int | None = None,
        tied_head: bool = False,
    ) -> None:
        if (inner is None) != (num_layers is None) or num_layers is not None and num_layers < 1:
            raise OptionError(
                "num_layers", num_layers, "must be at least 1 with `inner`, else None", "give both or neither"
            )
        self._probabilities = _function(probabilities)
        self._hidden = self._probabilities if hidden is None else _function(hidden)
        self._inner = inner
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
            bytes_per_token=0,
            batch_invariant=True,
            hidden_states=True,
            num_layers=num_layers,
            tied_head=tied_head,
            backend="toy runtime: a table of probabilities",
        )

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and look up their rows; see Runtime.forward.

        Raises:
            ModelError: if a feed names layers and `inner` is None.
        """
        grown = {feed.seq: self.cached.get(feed.seq, ()) + tuple(feed.tokens) for feed in feeds}
        assert len(grown) == len(feeds), "two feeds name the same sequence"
        asked = [(feed, _until(grown[feed.seq], feed, index)) for feed in feeds for index in feed.asked]
        shown = [(feed, index) for feed in feeds if feed.hidden for index in range(len(feed.tokens))]
        logits = self._logs([self._probabilities(tokens) for _, tokens in asked])
        hidden = [self._hidden(_until(grown[feed.seq], feed, index)) for feed, index in shown]
        inner = [self._look(tokens, layer) for feed, tokens in asked for layer in feed.layers]
        rows = Rows(
            logits,
            torch.tensor(hidden, dtype=torch.float32, device="cpu") if hidden else None,
            self._logs(inner) if any(feed.layers for feed in feeds) else None,
        )
        self.cached.update(grown)
        self.passes.append(tuple(len(feed.tokens) for feed in feeds))
        return rows

    def _look(self, tokens: tuple[int, ...], layer: int) -> Sequence[float]:
        if self._inner is None or self.info.num_layers is None:
            raise ModelError("this toy has no inner layers: give it `inner` and `num_layers`")
        assert 0 <= layer < self.info.num_layers, f"layer {layer} of {self.info.num_layers}"
        return self._inner(tokens, layer)

    def _logs(self, rows: Sequence[Sequence[float]]) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.float32, device="cpu").reshape(len(rows), self.info.vocab_size).log()

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


def _function(table: Table) -> Callable[[tuple[int, ...]], Sequence[float]]:
    return table if callable(table) else lambda tokens: table[tokens[-1]]


def _until(tokens: tuple[int, ...], feed: Feed, index: int) -> tuple[int, ...]:
    """Return the sequence up to token `index` of its newest feed."""
    return tokens[: len(tokens) - len(feed.tokens) + index + 1]

"""Prompts that a model's own forward has read: the rows of each prompt, and batches that several passes share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch

from unspool.types import Feed, PromptInputs, Rows


@dataclass(frozen=True, slots=True, eq=False)
class PromptRow:
    """One prompt of a batch that was read.

    places: indices of its tokens among the columns of the batch, ascending; the other columns are padding.
    next_position: the position of the next token, or None if the forward computes positions itself. logits: [vocab]
    float32 by index of the token. hidden: [tokens, head width] float32, the input of the head, or None. inner: [vocab]
    float32 by index of the token and layer.
    """

    places: torch.Tensor
    next_position: int | None
    logits: Mapping[int, torch.Tensor]
    hidden: torch.Tensor | None
    inner: Mapping[tuple[int, int], torch.Tensor]

    def rows(self, feed: Feed) -> Rows | None:
        """Return the rows that a feed of this prompt asks for; None if some were not computed."""
        places = [(index, layer) for index in feed.asked for layer in feed.layers]
        has_all = self.logits.keys() >= set(feed.asked) and self.inner.keys() >= set(places)
        if not has_all or (feed.hidden and self.hidden is None):
            return None
        return Rows(
            torch.stack([self.logits[index] for index in feed.asked]) if feed.asked else self._no_rows(),
            self.hidden if feed.hidden else None,
            torch.stack([self.inner[place] for place in places]) if places else None,
        )

    def _no_rows(self) -> torch.Tensor:
        return next(iter(self.logits.values()))[None][:0]


@dataclass(frozen=True, slots=True, eq=False)
class PromptBatch:
    """A batch of prompts that was read.

    width: columns, with padding. cache: of all rows, with padding. later: arguments of the next forward.
    """

    rows: tuple[PromptRow, ...]
    width: int
    cache: Any
    later: Mapping[str, Any]


class ReadBatches:
    """The batches that were read, so that each is read once, even if its prompts start in several passes.

    Args:
        read: as `PromptReader.read`.
    """

    def __init__(self, read: Callable[[Mapping[str, Any], Sequence[Feed]], PromptBatch]) -> None:
        self._read = read
        self._known: WeakKeyDictionary[PromptInputs, PromptBatch] = WeakKeyDictionary()

    def of(self, feed: Feed, feeds: Sequence[Feed]) -> PromptBatch:
        """Return the batch of a prompt, with the rows that its feed asks for.

        Args:
            feed: of the prompt.
            feeds: of the same pass. Prompts of one batch are read together.

        Raises:
            ModelError: if the model cannot read the batch.
        """
        assert feed.source is not None, "a prompt that is read has a source"
        inputs, row = feed.source.inputs, feed.source.row
        batch = self._known.get(inputs) if isinstance(inputs, PromptInputs) else None
        if batch is None or batch.rows[row].rows(feed) is None:
            batch = self._read(inputs, [each for each in feeds if each.source and each.source.inputs is inputs])
        if isinstance(inputs, PromptInputs):
            if row == len(batch.rows) - 1:
                self._known.pop(inputs, None)  # prompts start in order, and this is the last
            else:
                self._known[inputs] = batch
        return batch

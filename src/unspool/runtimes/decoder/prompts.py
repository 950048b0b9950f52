"""Prompts with embeddings, images or audio on the slot cache: the model's own forward reads them, slots hold K/V."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch

from unspool.errors import ModelError
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.wrap.prompt_batch import PromptBatch, ReadBatches
from unspool.types import Feed, Rows


class SlotPrompts:
    """Reads prompts into slots.

    Args:
        model: the model.
    """

    def __init__(self, model: DecoderModel) -> None:
        self._model = model
        # Slots of plain prompts have contexts from 0 on.
        self._contexts = itertools.count(-1, -1)
        self._batches = ReadBatches(model.read)

    def read(self, feed: Feed, feeds: Sequence[Feed], slot: Slot) -> tuple[Rows, bool]:
        """Read a whole prompt into the slot of its new sequence.

        Args:
            feed: of the prompt.
            feeds: of the pass. Prompts of one batch are read together.
            slot: with room for the prompt.

        Returns:
            The rows that the feed asks for, and True if K/V are finite.

        Raises:
            ModelError: if the model cannot read the prompt.
        """
        assert feed.source is not None and not slot.tokens, "a prompt with a source is the first feed of a sequence"
        batch = self._batches.of(feed, feeds)
        rows = batch.rows[feed.source.row].rows(feed)
        assert rows is not None, "a prompt of the batch was not read"
        slot.context = next(self._contexts)
        return rows, self._write(batch, feed.source.row, slot)

    def _write(self, batch: PromptBatch, number: int, slot: Slot) -> bool:
        """Copy the K/V of one prompt to positions [0, tokens) of a slot. Returns True if they are finite."""
        row, layers, layout = batch.rows[number], batch.cache.layers, self._model.layout
        count = len(row.places)
        if len(layers) != len(layout):
            raise ModelError(
                f"{type(self._model.module).__name__} caches {len(layers)} layers for this prompt, and "
                f"{len(layout)} for text: not supported in this version"
            )
        values = torch.empty(0)
        for index, layer in enumerate(layers):
            keys, values = (states[number, :, row.places.to(states.device)] for states in (layer.keys, layer.values))
            slot.pool.keys[index][slot.index, :, :count] = keys
            slot.pool.values[index][slot.index, :, :count] = values
        slot.position_offset = 0 if row.next_position is None else row.next_position - count
        # A nonfinite number in an earlier layer makes the input of the last layer nonfinite, and so its value.
        return bool(values.isfinite().all())

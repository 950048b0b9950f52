"""Forward passes of a model with an encoder: encoding of sources, and decoder passes over rows of equal length.

Knows slots and encoded sources. Knows neither sequences nor how the attention was chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from unspool.runtimes.kv.attention import Attends, attending
from unspool.runtimes.kv.pool import Layout
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.replay.replay import Replay
from unspool.runtimes.seq2seq.attention import EqualLengthAttention, FirstTokenAttention
from unspool.runtimes.seq2seq.cross_cache import CrossBatchCache, joint_cache
from unspool.runtimes.seq2seq.cross_projections import Projection, by_head
from unspool.runtimes.seq2seq.encoder_cache import EncodedSource, EncoderAdapter, KeysValues, stacked, visible
from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch
from unspool.runtimes.seq2seq.replayed_step import DecodeStep
from unspool.runtimes.seq2seq.self_cache import SelfCache
from unspool.runtimes.wrap.call_state import usable_rows
from unspool.runtimes.wrap.hooks import HeadHook
from unspool.runtimes.wrap.wrapped import WrappedModel
from unspool.types import Rows, Source

Attention: TypeAlias = Literal["ours", "own"]
"""The attention of the decoder: "ours" reads keys and values in their slots; "own" is the model's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seq2SeqForward:
    """Calls a wrapped model.

    wrapped: the model. reader: how it encodes. layout: shape and dtype of each decoder layer's keys and values.
    attention: of the decoder. uses_kernel: see `EqualLengthAttention`. reads_head: True if the input of the head can be
    read. replay: of decode steps; None for none. projections: the layers that make the keys and the values of a source,
    per decoder layer; None if a pass of the decoder must make them.
    """

    wrapped: WrappedModel
    reader: EncoderAdapter
    layout: Layout
    attention: Attention
    uses_kernel: bool
    reads_head: bool
    replay: Replay | None = None
    projections: Sequence[tuple[Projection, Projection]] | None = None

    def encode(self, group: Sequence[Source]) -> list[KeysValues]:
        """Encode sources with inputs of equal shapes. Returns the keys and values per source."""
        inputs = stacked(group, self.wrapped.device, next(self.wrapped.module.parameters()).dtype)
        with self.wrapped.calling(), self._attending(FirstTokenAttention()):
            pairs = self._read(self.reader.states(inputs))
            mask = inputs.get("attention_mask")
            return [self.copied(visible(pairs, row, mask)) for row in range(len(group))]

    def _read(self, states: torch.Tensor) -> KeysValues:
        """Return the keys and values of encoder outputs."""
        if self.projections is None:
            return self.reader.open(states, 0).source
        heads = [layer.num_heads for layer in self.layout]
        return [
            (by_head(key(states), count), by_head(value(states), count))
            for (key, value), count in zip(self.projections, heads, strict=True)
        ]

    def copied(self, pairs: KeysValues) -> KeysValues:
        """Return a copy in the layout's dtypes, so that one source does not keep the memory of its batch."""
        return [
            (key.to(layer.dtype, copy=True).contiguous(), value.to(layer.dtype, copy=True).contiguous())
            for (key, value), layer in zip(pairs, self.layout, strict=True)
        ]

    def num_prefixed(self, encoded: EncodedSource) -> int:
        """Return how many positions of a slot the source takes before the tokens: 0 with cross-attention."""
        return encoded.length if self.reader.has_prefix else 0

    def write_prefix(self, slot: Slot, encoded: EncodedSource) -> int:
        """Write a source into the slot of a new sequence, unless the model uses cross-attention.

        Returns:
            The number of positions that it takes.
        """
        count = self.num_prefixed(encoded)
        for layer, (key, value) in enumerate(zip(encoded.keys, encoded.values, strict=True)):
            slot.pool.keys[layer][slot.index, :, :count] = key[0, :, :count]
            slot.pool.values[layer][slot.index, :, :count] = value[0, :, :count]
        return count

    def run(
        self,
        batch: EqualLengthBatch,
        tokens: Sequence[Sequence[int]],
        asked: Sequence[int],
        hidden: Sequence[int] | None,
        cross: CrossBatchCache,
    ) -> tuple[Rows, torch.Tensor]:
        """Run one decoder pass.

        Args:
            batch: the rows.
            tokens: [rows, width], the new tokens of each row.
            asked: indices into all new tokens, row by row, to return logits for.
            hidden: such indices, to return the input of the head for; None for none.
            cross: of the runtime; used with the model's own attention.

        Returns:
            Logits [asked, vocab], and hidden states [hidden, head width] or None.
            Whether each row was finite, bool [rows].
        """
        return self.run_with(self.attention_over(batch), tokens, asked, hidden, cross)

    def attention_over(self, batch: EqualLengthBatch) -> EqualLengthAttention:
        """Return our attention for one pass, with its cache."""
        cache = SelfCache(batch, len(self.layout), returns_all=self.attention == "own")
        return EqualLengthAttention(cache, uses_kernel=self.uses_kernel)

    def run_with(
        self,
        attention: EqualLengthAttention,
        tokens: Sequence[Sequence[int]],
        asked: Sequence[int],
        hidden: Sequence[int] | None,
        cross: CrossBatchCache,
    ) -> tuple[Rows, torch.Tensor]:
        """Do as `run` with the attention of `attention_over`."""
        own, batch = attention.cache, attention.cache.batch
        sources, device = self._sources(batch, cross), self.wrapped.device
        ids = torch.tensor(tokens, device=device)
        with self.wrapped.calling(), self._attending(attention):
            if self.replay is not None and batch.width == 1 and hidden is None and [*asked] == [*range(len(tokens))]:
                logits, states = self.replay.run(DecodeStep(self._logits, attention, sources, ids)), None
            else:
                keep = torch.tensor(asked, dtype=torch.int64, device=device)
                logits, states = self._chosen_rows(own, sources, ids, keep, hidden)
        assert own.finite is not None, "the last layer was not reached"
        # Outside of the call, so that autograd can use the copies.
        return Rows(usable_rows(logits), None if states is None else usable_rows(states)), own.finite

    def _chosen_rows(
        self, own: SelfCache, sources: KeysValues, ids: torch.Tensor, keep: torch.Tensor, hidden: Sequence[int] | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits for rows of `keep`, and hidden states."""
        # The caller's hooks on the head must see the shapes of transformers' `generate`.
        patched = bool(self.wrapped.patch)
        with ExitStack() as stack:
            head = self.wrapped.module.get_output_embeddings() if self.reads_head and (hidden or not patched) else None
            hook = None if head is None else stack.enter_context(HeadHook(head, None if patched else keep))
            logits = self._logits(own, sources, ids)
            if hook is None or patched:
                logits = logits[keep.to(logits.device)]
            states = hook.rows(hidden) if hook is not None and hidden is not None else None
        return logits, states

    def _logits(self, own: SelfCache, sources: KeysValues, ids: torch.Tensor) -> torch.Tensor:
        """Call the decoder, and return its logits as rows."""
        cache = own if self.reader.has_prefix else joint_cache(own, sources)
        start = own.batch.start - (self.num_prefixed(own.batch.encoded[0]) if self.reader.has_prefix else 0)
        options = {self.reader.cache_argument: cache, "use_cache": True, "return_dict": True}
        output: Any = self.wrapped.module(**self.reader.arguments(ids, start), **options)
        logits: torch.Tensor = output.logits.flatten(0, 1)
        return logits

    def _sources(self, batch: EqualLengthBatch, cross: CrossBatchCache) -> KeysValues:
        """Return keys and values of the sources, or stand-ins for them."""
        if self.reader.has_prefix:
            return []
        if self.attention == "own":
            return cross.layers_of(batch.encoded)
        return batch.encoded[0].stand_ins  # our attention reads the sources themselves

    def _attending(self, target: Attends) -> AbstractContextManager[None]:
        return attending(target) if self.attention == "ours" else nullcontext()

"""The probe of a model with an encoder: compares decoder passes over our cache with the model's own forward."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Final, NamedTuple

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.kv.attention import cache_dtype
from unspool.runtimes.kv.pool import LayerLayout, Layout, SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.model_info import probe_length
from unspool.runtimes.seq2seq.cross_cache import CrossBatchCache
from unspool.runtimes.seq2seq.cross_projections import ProjectionSearch
from unspool.runtimes.seq2seq.encoder_cache import EncoderAdapter, FirstStepKV, SourceTable, visible
from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch
from unspool.runtimes.seq2seq.forward import Attention, Seq2SeqForward
from unspool.runtimes.wrap.hooks import HeadHook
from unspool.runtimes.wrap.probe import difference, probe_tokens
from unspool.runtimes.wrap.wrapped import WrappedModel
from unspool.types import Source

_NO_INTERFACE: Final = "has a decoder that does not use the attention interface"


class Probe(NamedTuple):
    """Two rows of tokens after random sources, and the model's own results for them.

    reference: logits, [2, tokens, vocab]. opening: keys and values of the tokens and of the sources. reads_head: True
    if the input of the head can be read. projections: names in the decoder, see `ProjectionSearch`.
    """

    tokens: list[list[int]]
    reference: torch.Tensor
    opening: FirstStepKV
    reads_head: bool
    projections: list[tuple[str, str]] | None

    @classmethod
    def of(cls, wrapped: WrappedModel, reader: EncoderAdapter, limit: int | None) -> Probe:
        """Run the model's own forward on a few tokens. limit: see `decoder_limit`."""
        module = wrapped.module
        tokens = probe_tokens(module, probe_length(limit, 4), 6)
        rows = [tokens, tokens[::-1]]
        head = module.get_output_embeddings()
        # The caller's own modules, which can have hooks, encode as their decoder does.
        is_searched = not wrapped.in_place and not reader.has_prefix
        with wrapped.calling(), ExitStack() as hooks:
            states = reader.probe_states(2)
            hook = hooks.enter_context(HeadHook(nn.Identity() if head is None else head))
            search = hooks.enter_context(ProjectionSearch(module.get_decoder(), states)) if is_searched else None
            reference, opening = reader.whole(states, torch.tensor(rows, device=wrapped.device))
            projections = None if search is None else search.found(opening.source)
        reads_head = hook.states is not None and len(hook.states) >= 2 * len(tokens)
        return cls(rows, reference.float(), opening, reads_head, projections)

    def layout(self, attention: Attention) -> Layout:
        """Return the layout of the decoder's cache under this attention."""
        return tuple(
            LayerLayout(
                key.shape[1],
                key.shape[-1],
                value.shape[-1],
                cache_dtype(key.dtype, key.device.type) if attention == "ours" else key.dtype,
                key.device,
            )
            for key, value in self.opening.own
        )

    def difference(self, forward: Seq2SeqForward) -> str:
        """Run both rows in two passes, and compare with the model's own logits. Returns the fault, or ""."""
        table, num_tokens = SourceTable(), len(self.tokens[0])
        pairs = [forward.copied(visible(self.opening.source, row, None)) for row in (0, 1)]
        encoded = [table.make(Source(inputs={}), each, 0) for each in pairs]
        pool = SlotPool(forward.layout, forward.num_prefixed(encoded[0]) + num_tokens, 2)
        slots = [Slot(pool, row, row) for row in (0, 1)]
        prefix = [forward.write_prefix(slot, each) for slot, each in zip(slots, encoded, strict=True)][0]
        half, found = max(1, num_tokens // 2), []
        for start in range(0, num_tokens, half):
            batch = EqualLengthBatch(list(zip(slots, encoded, strict=True)), prefix + start, half, spans_gaps=False)
            part = [row[start : start + half] for row in self.tokens]
            hidden = [0] if self.reads_head and start else None
            attention, reason = forward.attention_over(batch), ""
            try:
                rows, _ = forward.run_with(attention, part, list(range(2 * half)), hidden, CrossBatchCache())
                found.append(rows.logits.view(2, half, -1))
            except ModelError as error:
                reason = str(error)
            except Exception as error:
                reason = f"does not run on our cache: {type(error).__name__}: {error}"
                if forward.attention == "ours" and not attention.num_calls:
                    reason = _NO_INTERFACE
            # Self-attention and cross-attention.
            if not reason and forward.attention == "ours" and attention.num_calls != 2 * len(forward.layout):
                reason = _NO_INTERFACE
            if reason:
                return reason
        return difference(forward.wrapped.module, torch.cat(found, 1), self.reference, "our cache")

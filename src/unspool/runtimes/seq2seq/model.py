"""A model with an encoder: encoding, decoder passes over sequences of equal length, and the probe that allows them.

Owns how the wrapped model is called. Knows no sequences: a pass is a batch of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import nn

from unspool.errors import ModelError
from unspool.runtimes.kv.attention import ATTENTION_NAME, Attends, attending, cache_dtype
from unspool.runtimes.kv.pool import LayerLayout, Layout, SlotPool
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.model_info import probe_length
from unspool.runtimes.seq2seq.attention import EqualLengthAttention, FirstTokenAttention
from unspool.runtimes.seq2seq.cross_cache import CrossBatchCache, joint_cache
from unspool.runtimes.seq2seq.encoder_cache import (
    EncodedSource,
    FirstStepKV,
    KeysValues,
    SourceTable,
    adapter_of,
    stacked,
    visible,
)
from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch
from unspool.runtimes.seq2seq.self_cache import SelfCache
from unspool.runtimes.seq2seq.source_info import decoder_limit, source_obstacle
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.call_state import usable_rows
from unspool.runtimes.wrap.hooks import HeadHook
from unspool.runtimes.wrap.model_copy import (
    AttentionNames,
    restore_attention,
    separate_encoder_attention,
    set_attention,
)
from unspool.runtimes.wrap.probe import difference, failure, probe_tokens
from unspool.runtimes.wrap.wrapped import WrappedModel
from unspool.types import Rows, Source

Attention: TypeAlias = Literal["ours", "own"]


class _Probe(NamedTuple):
    """Two rows of tokens behind random sources, and the model's own logits of them, [2, tokens, vocab]."""

    states: torch.Tensor
    tokens: list[list[int]]
    reference: torch.Tensor
    opening: FirstStepKV


class Seq2SeqModel:
    """A model that encodes sources and runs decoder passes over rows of equal length.

    Args:
        model: a loaded encoder-decoder, or GIT.
        own: True if the model is ours to change; see `WrappedModel`.
        pack: see `pack_linears`.
        attention: "ours" reads the decoder's keys and values in their slots; "own" is the model's, which needs those of
            all rows in one tensor; "auto" is "ours" if the decoder supports it.
        names, patch: `attention` and `patch` of the `WrappedModel`.

    Attributes:
        layout: shape and dtype of each decoder layer's keys and values.
        attention: the attention in use.
        vocab_size: width of the logits.
        reads_head: True if the input of the head can be read.

    Raises:
        ModelError: if the model cannot run so; the message says why.
    """

    layout: Layout
    attention: Attention
    vocab_size: int
    reads_head: bool

    def __init__(
        self,
        model: Any,
        *,
        own: bool,
        pack: Pack = "auto",
        attention: Attention | Literal["auto"] = "auto",
        names: AttentionNames | None = None,
        patch: str = "",
    ) -> None:
        if reason := source_obstacle(model):
            raise ModelError(reason)
        self._wanted = attention
        self._wrapped = WrappedModel(model, own=own, pack=pack, attention=names, patch=patch)
        self._configure()

    @property
    def module(self) -> Any:
        """The module that runs."""
        return self._wrapped.module

    @property
    def version(self) -> int:
        """Number of changes of the weights; see `WrappedModel`."""
        return self._wrapped.version

    @property
    def in_place(self) -> bool:
        """True if the caller's own module runs."""
        return self._wrapped.in_place

    @property
    def is_patched(self) -> bool:
        """True if the caller's own module runs because of a patch; see `find_patch`."""
        return bool(self._wrapped.patch)

    @property
    def has_prefix(self) -> bool:
        """True if the source precedes the tokens in their own slots."""
        return self._reader.has_prefix

    def sync_weights(self) -> None:
        """Apply changes of the user's model since the last call.

        Raises:
            ModelError: if the changed model cannot run.
        """
        self._wrapped.sync_weights()
        if self._wrapped.builds != self._builds:
            self._configure()

    def refresh(self) -> None:
        """Apply the user's weights, even if they were written through `.data`."""
        self._wrapped.refresh()

    def describe(self) -> str:
        """Return how the model runs, in words."""
        attends = "reads keys and values in their slots" if self.attention == "ours" else "uses its own attention"
        why = f" ({self._why})" if self._why else ""
        cached = f"{str(self.layout[0].dtype).removeprefix('torch.')} keys and values"
        return ", ".join([f"passes over equal lengths: the decoder {attends}{why}", *self._wrapped.describe(), cached])

    # --- probe --------------------------------------------------------------------------------------------------

    def _configure(self) -> None:
        """Prepare the wrapped module: pack, choose the attention, and compare with the model's own logits."""
        with self._wrapped.probing():
            self._build()
        self._reader = adapter_of(self.module)
        self._builds = self._wrapped.builds

    def _build(self) -> None:
        try:
            self._reader = adapter_of(self.module)
            probe = self._prepare_probe()
        except Exception as error:
            reason = failure(self.module, "a source of ours", error)
            raise ModelError(f"{reason}: not supported in this version") from error
        self._wrapped.pack()
        can_change = not self._wrapped.in_place and not self.has_prefix
        self._given = separate_encoder_attention(self.module) if can_change else []
        self._settle(probe)

    def _prepare_probe(self) -> _Probe:
        """Return the model's own logits of a few tokens; see if the input of its head can be read."""
        tokens = probe_tokens(self.module, probe_length(decoder_limit(self.module), 4), 6)
        rows = [tokens, tokens[::-1]]
        head = self.module.get_output_embeddings()
        with self._wrapped.calling():
            states = self._reader.trial_states(2)
            with HeadHook(nn.Identity() if head is None else head) as tap:
                reference = self._reader.whole(states, torch.tensor(rows, device=self._wrapped.device)).float()
            opening = self._reader.open(states, tokens[0])
        self.reads_head = tap.states is not None and len(tap.states) >= 2 * len(tokens)
        self.vocab_size = reference.shape[-1]
        return _Probe(states, rows, reference, opening)

    def _settle(self, probe: _Probe) -> None:
        """Use our attention if the decoder passes the probe with it, else its own."""
        choices: tuple[Attention, ...] = ("ours", "own") if self._wanted == "auto" else (self._wanted,)
        self._why = ""
        for choice in choices:
            reason = self._obstacle(probe) if choice == "ours" else ""
            if not reason:
                self._adopt(choice, probe)
                reason = self._difference(probe)
            if not reason:
                return
            self._why = reason
        raise ModelError(f"{type(self.module).__name__} {self._why}: not supported in this version")

    def _adopt(self, attention: Attention, probe: _Probe) -> None:
        self.attention = attention
        self.layout = _layout(probe.opening.own, converts=attention == "ours")
        restore_attention(self._given)
        if attention == "ours":
            set_attention(self.module.get_decoder(), ATTENTION_NAME)

    def _obstacle(self, probe: _Probe) -> str:
        """Return why the decoder cannot use our attention; "" if it can."""
        if self.has_prefix:
            return "keeps its source among its tokens"
        if self._wrapped.in_place:
            return "runs on the caller's own module"
        self._adopt("ours", probe)
        first = FirstTokenAttention()
        try:
            with self._wrapped.calling(), attending(first):
                self._reader.open(probe.states, probe.tokens[0][0])
        except ModelError as error:
            return str(error)
        return "" if first.num_calls == 2 * len(self.layout) else "has a decoder that attends by other means"

    def _difference(self, probe: _Probe) -> str:
        """Feed both rows in two passes, and compare with the model's own logits. Returns the difference, or ""."""
        table, num_tokens = SourceTable(), len(probe.tokens[0])
        encoded = [
            table.make(Source(inputs={}), self._kept(visible(probe.opening.source, row, None)), 0) for row in (0, 1)
        ]
        pool = SlotPool(self.layout, self._num_prefixed(encoded[0]) + num_tokens, 2)
        slots = [Slot(pool, row, row) for row in (0, 1)]
        prefix = [self.lay_prefix(slot, each) for slot, each in zip(slots, encoded, strict=True)][0]
        half, found = max(1, num_tokens // 2), []
        for start in range(0, num_tokens, half):
            batch = EqualLengthBatch(list(zip(slots, encoded, strict=True)), prefix + start, half, spans_gaps=False)
            part = [row[start : start + half] for row in probe.tokens]
            hidden = [0] if self.reads_head and start else None
            try:
                rows, _ = self.run(batch, part, list(range(2 * half)), hidden, CrossBatchCache())
                found.append(rows.logits.view(2, half, self.vocab_size))
            except Exception as error:
                return f"does not run on a cache of ours: {type(error).__name__}: {error}"
        return difference(self.module, torch.cat(found, 1), probe.reference, "a cache of ours")

    # --- running ------------------------------------------------------------------------------------------------

    def encode(self, group: Sequence[Source]) -> list[KeysValues]:
        """Encode sources with inputs of the same shapes. Returns the keys and values of each."""
        inputs = stacked(group, self._wrapped.device, next(self.module.parameters()).dtype)
        with self._wrapped.calling(), self._attending(FirstTokenAttention()):
            opening = self._reader.open(self._reader.states(inputs), 0)
            mask = inputs.get("attention_mask")
            return [self._kept(visible(opening.source, row, mask)) for row in range(len(group))]

    def _kept(self, pairs: KeysValues) -> KeysValues:
        """Return a copy, so that each source of a batch can be freed alone."""
        return [
            (key.to(layer.dtype, copy=True).contiguous(), value.to(layer.dtype, copy=True).contiguous())
            for (key, value), layer in zip(pairs, self.layout, strict=True)
        ]

    def _num_prefixed(self, encoded: EncodedSource) -> int:
        return encoded.length if self.has_prefix else 0

    def lay_prefix(self, slot: Slot, encoded: EncodedSource) -> int:
        """Write a source into the slot of a new sequence if it belongs there. Returns the number of positions."""
        count = self._num_prefixed(encoded)
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
        stacks: CrossBatchCache,
    ) -> tuple[Rows, torch.Tensor]:
        """Run one pass.

        Args:
            bucket: the rows.
            tokens: [rows, width], the new tokens of each row.
            asked, hidden: indices into all new tokens, row by row, to return logits and inputs of the head for.
            stacks: of the runtime, for a model with its own attention.

        Returns:
            logits [asked, vocab] and hidden [hidden, head width] or None; and bool [rows], True for finite rows.
        """
        own = SelfCache(batch, len(self.layout), returns_all=self.attention == "own")
        cache = own if self.has_prefix else joint_cache(own, self._sources(batch, stacks))
        start = batch.start - self._num_prefixed(batch.encoded[0])
        keep = torch.tensor(asked, dtype=torch.int64, device=self._wrapped.device)
        with ExitStack() as stack:
            stack.enter_context(self._wrapped.calling())
            stack.enter_context(self._attending(EqualLengthAttention(own)))
            # The caller's hook on the head must see the shapes of transformers' `generate`.
            patched = bool(self._wrapped.patch)
            head = self.module.get_output_embeddings() if self.reads_head and (hidden or not patched) else None
            tap = None if head is None else stack.enter_context(HeadHook(head, None if patched else keep))
            ids = torch.tensor(tokens, device=self._wrapped.device)
            arguments = self._reader.arguments(ids, start)
            output = self.module(**arguments, past_key_values=cache, use_cache=True, return_dict=True)
            logits = output.logits.flatten(0, 1)
            if tap is None or patched:
                logits = logits[keep.to(logits.device)]
            states = tap.rows(hidden) if tap is not None and hidden is not None else None
        assert own.finite is not None, "the last layer was not reached"
        return Rows(usable_rows(logits), None if states is None else usable_rows(states)), own.finite

    def _sources(self, batch: EqualLengthBatch, stacks: CrossBatchCache) -> list[tuple[torch.Tensor, torch.Tensor]]:
        if self.attention == "own":
            return stacks.layers_of(batch.encoded)
        first = batch.encoded[0]
        return [(key[:, :, :1], value[:, :, :1]) for key, value in zip(first.keys, first.values, strict=True)]

    def _attending(self, target: Attends) -> AbstractContextManager[None]:
        return attending(target) if self.attention == "ours" else nullcontext()


def _layout(own: KeysValues, *, converts: bool) -> Layout:
    return tuple(
        LayerLayout(
            key.shape[1],
            key.shape[-1],
            value.shape[-1],
            cache_dtype(key.dtype, key.device.type) if converts else key.dtype,
            key.device,
        )
        for key, value in own
    )

"""The runtime for encoder-decoders and image captioning (T5, BART, Whisper, GIT): the methods of `Runtime`.

Owns the order of one forward: encode sources, reserve slots, group feeds into passes, run them, advance the slots. The
SlotTable has tokens and lengths, the SourceTable has encoder outputs, and the Seq2SeqModel has the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch

from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.generic.row_buffer import join_rows, split_rows
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import Limit, limits_of
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.kv.slot_table import SlotTable
from unspool.runtimes.model_info import describe
from unspool.runtimes.seq2seq.cross_cache import CrossBatchCache
from unspool.runtimes.seq2seq.encoder_cache import EncodedSource, SourceTable, batches
from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch
from unspool.runtimes.seq2seq.forward import Attention
from unspool.runtimes.seq2seq.model import Seq2SeqModel
from unspool.runtimes.seq2seq.source_info import decoder_limit, source_info, source_obstacle
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.model_copy import AttentionNames
from unspool.runtimes.wrap.wrapped import shared
from unspool.source_info import SourceInfo
from unspool.types import Feed, ModelInfo, Rows, Seq, Source

__all__ = ["Seq2SeqRuntime", "SourceInfo", "source_info", "source_obstacle"]

_PREFIX = -1
"""The token of a slot position that holds a part of the source."""


class _Pass(NamedTuple):
    """Feeds that share a pass. feeds: indices into the feeds of the forward, sorted by slot. batch: their rows."""

    feeds: list[int]
    batch: EqualLengthBatch


class Seq2SeqRuntime(Runtime):
    """A model with an encoder, with the decoder's KV cache in slots. Follows the contract of `Runtime`.

    The first feed of a sequence encodes its source. All sequences with the same `Source` object, and their forks, share
    one encoder output, see SourceTable. Sequences of equal length share a pass.

    Args:
        model: a loaded encoder-decoder of transformers, or GIT.
        owns_model: True if the model is ours to change. False leaves it unmodified, and applies its weight changes
            when the next sequence starts.
        pack: True packs linear layers on a CPU. "auto" packs them if that is possible and, for a user's own model, if
            the copy takes at most half of the free memory.
        max_cache_tokens: limit on cached decoder tokens over all live sequences, see `limits`. Encoder outputs do not
            count.
        max_sequences: limit on live sequences.
        attention: "ours" reads keys and values in their slots, and each source once for all rows that share it; "own"
            is the model's attention; "auto" is "ours" if the decoder uses transformers' attention interface.
        names, patch: `attention` and `patch` of the `WrappedModel`.

    Attributes:
        source: the kind of the encoder's input, and the start of the output.

    Raises:
        ModelError: if the model cannot run here; the message says why.
    """

    def __init__(
        self,
        model: Any,
        *,
        owns_model: bool,
        pack: Pack = "auto",
        max_cache_tokens: Limit = None,
        max_sequences: Limit = None,
        attention: Attention | Literal["auto"] = "auto",
        names: AttentionNames | None = None,
        patch: str = "",
    ) -> None:
        if owns_model or patch:
            self._model = Seq2SeqModel(
                model, owns_model=owns_model, pack=pack, attention=attention, names=names, patch=patch
            )
        else:
            self._model = shared(model, Seq2SeqModel, pack=pack, attention=attention)
        self._max_tokens, self._max_sequences = max_cache_tokens, max_sequences
        self.source: SourceInfo = source_info(model)
        self._configure()

    def _configure(self) -> None:
        """Set everything that depends on the current state of the model."""
        model = self._model
        self._version = model.version
        self._sources, self._cross_batch = SourceTable(), CrossBatchCache()
        # Slots count the image before the tokens, but the engine does not. So only the number of sequences is limited.
        per_token, device = self.bytes_per_token, model.layout[0].device
        limits = limits_of(self._max_sequences, self._max_tokens, bytes_per_token=per_token, device=device)
        self._slots = SlotTable(model.layout, limits._replace(max_tokens=None) if model.has_prefix else limits)
        self._spans_gaps = model.layout[0].device.type != "cpu"
        info = describe(
            model.module,
            model.config,
            vocab_size=model.vocab_size,
            backend=model.describe(),
            batch_invariance_obstacle="it has an encoder, and batches of encoder inputs are not invariant",
            hidden_states=model.forward.reads_head,
            num_layers=None,
            reads_whole=self._model.is_patched,
            limits=limits,
            bytes_per_token=per_token,
        )
        self.info: ModelInfo = replace(info, needs_source=True, max_length=decoder_limit(model.config))

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """True if the caller's own module runs, which this runtime then holds."""
        return self._model.in_place

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values per cached decoder token, over all layers."""
        return sum(layer.bytes_per_token for layer in self._model.layout)

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError: if the limits on tokens or sequences are exceeded.
            ModelError: if a first feed lacks a source or a later feed has one, or if a feed asks for batch invariance,
                hidden states or inner layers that `info` excludes.
        """
        if not feeds:
            return Rows(torch.empty(0, self.info.vocab_size, dtype=torch.float32, device=self._model.layout[0].device))
        self._check(feeds)
        opened = [feed for feed in feeds if feed.seq not in self._slots.live]
        if opened:
            self._sync_weights()
        fresh = self._read(opened)
        slots = self._slots.reserve([(feed.seq, len(feed.tokens) + self._num_prefixed(feed, fresh)) for feed in feeds])
        try:
            for feed, slot in zip(feeds, slots, strict=True):
                if feed.seq in fresh:
                    self._sources.hold(feed.seq, fresh[feed.seq])
                    slot.context = fresh[feed.seq].number
                    prefix = [_PREFIX] * self._model.forward.write_prefix(slot, fresh[feed.seq])
                    self._slots.advance(feed.seq, prefix, invariant=False, nonfinite=False)
            rows, finite = self._run(feeds, slots)
        except BaseException:
            for feed, slot in zip(feeds, slots, strict=True):
                slot.pool.zero(slot.index, slot.length, slot.length + len(feed.tokens))
            for feed in opened:
                self.release(feed.seq)
            raise
        for feed, is_finite in zip(feeds, finite, strict=True):
            self._slots.advance(feed.seq, feed.tokens, invariant=False, nonfinite=not is_finite)
        return rows

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; both read the same source. See Runtime.fork.

        Raises:
            CapacityError: if the limits on tokens or sequences are exceeded.
        """
        self._slots.fork(seq, child)
        self._sources.hold(child, self._sources.of[seq])

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; it keeps its source. See Runtime.truncate."""
        prefix = self._model.forward.num_prefixed(self._sources.of[seq])
        return self._slots.truncate(seq, prefix + keep) - prefix

    def release(self, seq: Seq) -> None:
        """Free a sequence, and old encoder outputs that no sequence reads; see Runtime.release."""
        self._slots.release(seq)
        self._sources.release(seq)
        if not self._sources.of:
            self._cross_batch.clear()

    def refresh(self) -> None:
        """Apply a user's weights after they were written through `.data`. Other changes are detected automatically."""
        self._model.refresh()
        self._sync_weights()

    def check(self) -> None:
        """Assert the invariants of the cache; for tests."""
        self._slots.check()
        self._sources.check()
        assert self._slots.live.keys() == self._sources.of.keys(), "a sequence without a source, or vice versa"
        for seq, slot in self._slots.live.items():
            assert slot.context == self._sources.of[seq].number, f"sequence {seq} is in a slot of another source"

    def _check(self, feeds: Sequence[Feed]) -> None:
        for feed in feeds:
            if (feed.seq in self._slots.live) is (feed.source is not None):
                which = "the first feed of a sequence lacks it" if feed.source is None else "a later feed has one"
                raise ModelError(f"{self.info.name} needs a source in the first feed of a sequence only: {which}")
        check_feeds(self.info, feeds, takes_source=True)

    def _sync_weights(self) -> None:
        """Apply changes of a user's model, and clear free slots, which hold K/V of the previous weights."""
        self._model.sync_weights()
        if self._model.version == self._version:
            return
        if self._slots.renew(self._model.layout):
            self._version = self._model.version
        else:
            self._configure()

    # --- sources ------------------------------------------------------------------------------------------------

    def _read(self, opened: Sequence[Feed]) -> dict[Seq, EncodedSource]:
        """Return the encoder output of each new sequence; encodes only unknown sources."""
        found: dict[int, EncodedSource] = {}
        unread: list[Source] = []
        for feed in opened:
            assert feed.source is not None, "first feeds were checked for a source"
            known = self._sources.find(feed.source, self._version)
            if known is None:
                unread.append(feed.source)
            else:
                found[id(feed.source)] = known
        for group in batches(unread):
            for source, pairs in zip(group, self._model.forward.encode(group), strict=True):
                found[id(source)] = self._sources.make(source, pairs, self._version)
        return {feed.seq: found[id(feed.source)] for feed in opened}

    def _num_prefixed(self, feed: Feed, fresh: dict[Seq, EncodedSource]) -> int:
        return self._model.forward.num_prefixed(fresh[feed.seq]) if feed.seq in fresh else 0

    # --- passes -------------------------------------------------------------------------------------------------

    def _passes(self, feeds: Sequence[Feed], slots: Sequence[Slot]) -> list[_Pass]:
        """Group the feeds into passes of equal cached length and equally many new tokens.

        With the model's own attention, the sources of a pass must have equal length too.
        """
        own = self._model.forward.attention == "own"
        groups: dict[tuple[int, int, int], list[int]] = {}
        encoded = [self._sources.of[feed.seq] for feed in feeds]
        for index, (feed, slot) in enumerate(zip(feeds, slots, strict=True)):
            key = (slot.length, len(feed.tokens), encoded[index].length if own else 0)
            groups.setdefault(key, []).append(index)
        passes = []
        for (start, width, _), indices in groups.items():
            indices.sort(key=lambda index: EqualLengthBatch.order(slots[index]))
            rows = [(slots[index], encoded[index]) for index in indices]
            passes.append(_Pass(indices, EqualLengthBatch(rows, start, width, spans_gaps=self._spans_gaps)))
        return passes

    def _run(self, feeds: Sequence[Feed], slots: Sequence[Slot]) -> tuple[Rows, list[bool]]:
        """Run all passes. Returns the rows in the order of the feeds, and True per feed with finite values."""
        parts: dict[int, Rows] = {}
        finite = [True] * len(feeds)
        for indices, batch in self._passes(feeds, slots):
            group = [feeds[index] for index in indices]
            firsts = [row * batch.width for row in range(len(group))]
            asked = [first + at for first, feed in zip(firsts, group, strict=True) for at in feed.asked]
            shown = [
                first + at
                for first, feed in zip(firsts, group, strict=True)
                if feed.hidden
                for at in range(batch.width)
            ]
            tokens = [feed.tokens for feed in group]
            rows, flags = self._model.forward.run(batch, tokens, asked, shown or None, self._cross_batch)
            for index, flag in zip(indices, flags.tolist(), strict=True):
                finite[index] = flag
            if indices == list(range(len(feeds))):
                return rows, finite
            parts |= zip(indices, split_rows(rows, group), strict=True)
        return join_rows([parts[index] for index in range(len(feeds))]), finite

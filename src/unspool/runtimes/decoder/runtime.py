"""The slot-cache backend: any causal language model that uses transformers' attention interface.

Owns the order of one forward: room, plan, pass, advance. Tokens and lengths are in the `SlotTable`, the model is in the
`DecoderModel`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import torch

from unspool.errors import OptionError
from unspool.kernels.attention import attends
from unspool.protocols import Runtime
from unspool.runtimes.decoder.model import DecoderModel
from unspool.runtimes.decoder.prompts import SlotPrompts
from unspool.runtimes.generic.row_buffer import join_rows, split_rows
from unspool.runtimes.kv.attention_plan import AttentionPath, AttentionPlan
from unspool.runtimes.kv.cache import SlotCache
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.flat_batch import Batch
from unspool.runtimes.kv.limits import Limit, limits_of
from unspool.runtimes.kv.segments import Segment
from unspool.runtimes.kv.slot import Slot
from unspool.runtimes.kv.slot_table import SlotTable
from unspool.runtimes.model_info import describe, text_config
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.wrapped import shared
from unspool.types import Feed, ModelInfo, Rows, Seq

if TYPE_CHECKING:
    from unspool.runtimes.decoder.capture import GraphMaker
    from unspool.runtimes.decoder.cuda_graphs import Graphs

_VARIABLE = "UNSPOOL_CUDA_GRAPHS"


class DecoderRuntime(Runtime):
    """A causal language model over a cache of slots. Follows the contract of every Runtime.

    Args:
        model: a loaded transformers model.
        owns_model: True if the model is ours to change. Otherwise it stays as it is, the runtime follows its training
            steps whenever a sequence begins, and all runtimes over it share one `DecoderModel`.
        pack: whether to pack linear layers on a CPU. That takes seconds for large models and makes decoding two to four
            times faster. "auto" packs if the CPU supports it and, beside a user's own weights, if the copy takes at
            most half of the free memory.
        max_cache_tokens: limit on tokens over all live sequences, see `limits`. See `bytes_per_token`.
        max_sequences: limit on live sequences.
        attention: how one-token feeds are attended, see `AttentionPlan`. "auto" is "kernel" on a CPU with kernels, else
            "loop" on a CPU, and "masked" elsewhere.
        graph_maker: makes graphs of decode steps. None for CUDA graphs if the model is on one CUDA device and the
            environment variable `UNSPOOL_CUDA_GRAPHS` is 1, else for no graphs. Experimental.

    Raises:
        ModelError: if the model cannot run here; the message says why.
        OptionError: if `UNSPOOL_CUDA_GRAPHS` is neither 0 nor 1.
    """

    has_prefix_caching = True

    def __init__(
        self,
        model: Any,
        *,
        owns_model: bool,
        pack: Pack = "auto",
        max_cache_tokens: Limit = None,
        max_sequences: Limit = None,
        attention: AttentionPath | Literal["auto"] = "auto",
        graph_maker: GraphMaker | None = None,
    ) -> None:
        self._decoder_model = (
            DecoderModel(model, owns_model=True, pack=pack) if owns_model else shared(model, DecoderModel, pack=pack)
        )
        self._attention = _attention_path(self._decoder_model) if attention == "auto" else attention
        self._max_tokens, self._max_sequences = max_cache_tokens, max_sequences
        self._graph_maker = graph_maker
        self._configure()

    def _configure(self) -> None:
        """Set everything that depends on the current `DecoderModel`."""
        decoder_model = self._decoder_model
        self._version = decoder_model.version
        per_token, device = self.bytes_per_token, decoder_model.layout[0].device
        limits = limits_of(self._max_sequences, self._max_tokens, bytes_per_token=per_token, device=device)
        self._slots = SlotTable(decoder_model.layout, limits)
        self._prompts = SlotPrompts(decoder_model)
        devices = {layer.device for layer in decoder_model.layout}
        # Index tensors on the CPU work for tensors of any device, but a model on one device would wait for them.
        self._index_device = devices.pop() if len(devices) == 1 else torch.device("cpu")
        self._graphs = _graphs_over(decoder_model, self._graph_maker)
        obstacle = decoder_model.batch_invariance.obstacle
        if not obstacle and self._attention == "masked":
            obstacle = 'attention="masked" reads many rows in one call; use attention="loop"'
        self.info: ModelInfo = describe(
            decoder_model.module,
            text_config(decoder_model.module),
            vocab_size=decoder_model.vocab_size,
            backend=self._backend(),
            batch_invariance_obstacle=obstacle,
            hidden_states=decoder_model.reads_head,
            num_layers=None if decoder_model.layers is None else len(decoder_model.layers),
            takes_source=True,
            limits=limits,
            bytes_per_token=per_token,
        )

    def _backend(self) -> str:
        parts = [self._decoder_model.describe()] + ([self._graphs.describe()] if self._graphs is not None else [])
        return ", ".join(parts)

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """True if the caller's own module runs, which this runtime then holds."""
        return self._decoder_model.in_place

    @property
    def bytes_per_token(self) -> int:
        """Bytes of keys and values per cached token, over all layers."""
        return sum(layer.bytes_per_token for layer in self._decoder_model.layout)

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
            ModelError: if a prompt's source cannot be read, or if a feed needs a capability that `info` excludes: batch
                invariance, hidden states, inner layers.
        """
        if not feeds:
            return Rows(torch.empty(0, self.info.vocab_size, dtype=torch.float32, device=self._index_device))
        check_feeds(self.info, feeds, takes_source=True)
        opened = [feed.seq for feed in feeds if feed.seq not in self._slots.live]
        if opened:
            self._sync_weights()
        salts = {feed.seq: feed.salt for feed in feeds}
        slots = self._slots.reserve([(feed.seq, len(feed.tokens)) for feed in feeds], salts)
        try:
            rows, finite = self._run(feeds, slots)
        except BaseException:
            for feed, slot in zip(feeds, slots, strict=True):
                slot.pool.zero(slot.index, slot.length, slot.length + len(feed.tokens))
            for seq in opened:
                self._slots.release(seq)
            raise
        for feed, is_finite in zip(feeds, finite, strict=True):
            self._slots.advance(feed.seq, feed.tokens, invariant=feed.invariant, nonfinite=not is_finite)
        return rows

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        """Begin a sequence with the longest prefix that a slot holds; see Runtime.match_prefix.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
        """
        if self._slots.find(tokens, least=least, invariant=invariant, salt=salt) is None:
            return 0
        # A change of the weights makes the cached prefix invalid.
        self._sync_weights()
        return self._slots.match_prefix(seq, tokens, least=least, invariant=invariant, salt=salt)

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
        """
        self._slots.fork(seq, child)

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate."""
        return self._slots.truncate(seq, keep)

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self._slots.release(seq)

    def refresh(self) -> None:
        """Apply a user's weights after they were written through `.data`; other changes are found automatically."""
        self._decoder_model.refresh()
        self._sync_weights()

    def check(self) -> None:
        """Assert the invariants of the cache; for tests."""
        self._slots.check()

    def _sync_weights(self) -> None:
        """Apply changes of a user's own model; the contents of free slots are then out of date."""
        self._decoder_model.sync_weights()
        if self._decoder_model.version == self._version:
            return
        if self._slots.renew(self._decoder_model.layout):
            self._version = self._decoder_model.version
        else:
            self._configure()

    def _run(self, feeds: Sequence[Feed], slots: Sequence[Slot]) -> tuple[Rows, list[bool]]:
        """Read the prompts that have a source, and run one pass for all other feeds."""
        plain = [index for index, feed in enumerate(feeds) if feed.source is None]
        if len(plain) == len(feeds):
            return self._pass(feeds, slots)
        parts: dict[int, Rows] = {}
        finite = [True] * len(feeds)
        for index in sorted(set(range(len(feeds))) - set(plain)):
            parts[index], finite[index] = self._prompts.read(feeds[index], feeds, slots[index])
        if plain:
            rest = [feeds[index] for index in plain]
            rows, flags = self._pass(rest, [slots[index] for index in plain])
            parts |= zip(plain, split_rows(rows, rest), strict=True)
            for index, flag in zip(plain, flags, strict=True):
                finite[index] = flag
        return join_rows([parts[index] for index in range(len(feeds))]), finite

    def _pass(self, feeds: Sequence[Feed], slots: Sequence[Slot]) -> tuple[Rows, list[bool]]:
        """Run the pass. Returns the rows, and per feed True if its values are finite."""
        batch = Batch(feeds, slots)
        if self._graphs is None:
            return self._plain_pass(batch)
        result = self._graphs.run(batch, self._plain_pass)
        if self._graphs.obstacle and self._graphs.obstacle not in self.info.backend:
            self.info = replace(self.info, backend=self._backend())
        return result

    def _plain_pass(self, batch: Batch) -> tuple[Rows, list[bool]]:
        plan = AttentionPlan(batch.spans, self._attention, self._index_device)
        cache = SlotCache(plan, len(self._decoder_model.layout))
        rows = self._decoder_model.run(
            cache,
            batch.tokens,
            batch.positions,
            batch.asked,
            hidden=batch.hidden,
            inner=batch.inner,
            invariant=batch.invariant,
        )
        return rows, _finite_spans(cache, batch.spans)


def _attention_path(decoder_model: DecoderModel) -> AttentionPath:
    layout, dtype = decoder_model.layout, next(decoder_model.module.parameters()).dtype
    if any(layer.device.type != "cpu" for layer in layout):
        return "masked"
    return "kernel" if all(attends(dtype, layer.dtype) for layer in layout) else "loop"


def _graphs_over(decoder_model: DecoderModel, maker: GraphMaker | None) -> Graphs | None:
    if maker is None and not (_wants_cuda_graphs() and decoder_model.device.type == "cuda"):
        return None
    # Imported late, because most processes never need it.
    from unspool.runtimes.decoder.cuda_graphs import graphs_over

    return graphs_over(decoder_model, maker)


def _wants_cuda_graphs() -> bool:
    given = os.environ.get(_VARIABLE) or "0"
    if given not in ("0", "1"):
        raise OptionError(_VARIABLE, given, "must be 0 or 1", "unset it for no CUDA graphs")
    return given == "1"


def _finite_spans(cache: SlotCache, spans: Sequence[Segment]) -> list[bool]:
    finite = cache.finite_rows()
    return [all(finite[span.rows]) for span in spans]

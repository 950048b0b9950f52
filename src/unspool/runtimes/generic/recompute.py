"""Any causal language model of transformers without a cache: every forward reads the whole sequence again.

For models that have no cache, or none that gives what they say without one: OpenAI GPT, XLNet, XLM.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import torch

from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.generic.model import CausalModel
from unspool.runtimes.generic.probe import take_stock, try_whole
from unspool.runtimes.generic.row_buffer import RowBuffer, rows_of
from unspool.runtimes.generic.sequence_table import SequenceTable
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import Limit, hard, limits_of
from unspool.runtimes.model_info import describe
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.hooks import LayerRow
from unspool.runtimes.wrap.wrapped import WrappedModel, shared
from unspool.types import Feed, ModelInfo, Rows, Seq


class _Run(NamedTuple):
    """Tokens to read from the first on, for one feed.

    asked: positions whose logits are wanted. start: the first one whose hidden state is, where the feed wants any.
    """

    feed: Feed
    tokens: list[int]
    asked: list[int]
    start: int
    found: RowBuffer


class RecomputeRuntime(Runtime):
    """A causal language model that reads each sequence anew. Follows the contract of every Runtime.

    Where one pass shows what follows each of its tokens, a feed is one pass; else (XLNet reads a token for the place it
    predicts, XLM a mask) each asked position is a pass of its own, as it is in transformers' `generate`.

    Args:
        model: a loaded transformers model.
        own: whether the model is ours to change; see Host.
        pack: whether linear layers are packed on a CPU; see `pack_linears`.
        max_cache_tokens: limit on tokens over all live sequences, see `limits`. Tokens alone are kept, no cache.
        max_sequences: limit on live sequences.
        reason: why the model does not run on a faster path, for `info.backend`.
        host: the model made ready already; None for a new one.
        row_by_row: whether each asked position is a pass of its own in any case.

    Raises:
        ModelError: the model does not run; the message says why.
    """

    info: ModelInfo

    def __init__(
        self,
        model: Any,
        *,
        own: bool,
        pack: Pack = "auto",
        max_cache_tokens: Limit = None,
        max_sequences: Limit = None,
        reason: str = "",
        wrapped: WrappedModel | None = None,
        row_by_row: bool = False,
    ) -> None:
        self._wrapped = wrapped or (
            WrappedModel(model, own=True, pack=pack) if own else shared(model, WrappedModel, pack=pack)
        )
        self._limits = (max_sequences, max_cache_tokens)
        self._table = SequenceTable(max_tokens=hard(max_cache_tokens), max_sequences=hard(max_sequences))
        self._reason, self._row_by_row = reason, row_by_row
        self._configure()

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """Whether the caller's own module runs, which this runtime then holds."""
        return self._wrapped.in_place

    def _configure(self) -> None:
        """Read everything that depends on the host as it now is."""
        self._model = CausalModel(self._wrapped)
        stock = take_stock(self._model, try_whole)
        self._habits = stock.capabilities
        if self._row_by_row or self._wrapped.patch:
            self._habits = self._habits._replace(shows_all=False)
        readable = self._model.readable
        layers = readable.layers if self._habits.shows_all else None
        self.info = describe(
            self._wrapped.module,
            vocab_size=stock.vocab_size,
            backend=self._describe(),
            batch_invariance_obstacle="it runs without a cache, and its own attention reads rows together",
            hidden_states=readable.reads_head if self._habits.shows_all else readable.reads_last,
            num_layers=None if layers is None else len(layers),
            reads_whole=bool(self._wrapped.patch),
            limits=limits_of(*self._limits, bytes_per_token=0, device=self._wrapped.device),
            bytes_per_token=0,
        )
        self._builds = self._wrapped.builds

    def _describe(self) -> str:
        parts = ["recomputation: every forward reads the whole sequence"]
        if self._reason:
            parts.append(f"no faster path ({self._reason})")
        parts += self._wrapped.describe()
        if not self._habits.shows_all:
            parts.append("one pass for each position")
        parts.append("sequences of one length side by side" if self._habits.batches else "one sequence at a time")
        parts.append("rows depend on their company by rounding")
        return ", ".join(parts)

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError: the limits on tokens or sequences leave no room.
            ModelError: a feed brings a source, or wants what `info` says cannot be had.
        """
        check_feeds(self.info, feeds)
        if any(feed.seq not in self._table.live for feed in feeds):
            self._sync_weights()
        self._table.check_room([(feed.seq, len(feed.tokens)) for feed in feeds])
        runs = [run for feed in feeds for run in self._runs(feed)]
        for group in self._groups(runs):
            self._call(group)
        for feed in feeds:
            self._table.live[feed.seq] = self._table.grown(feed)
        return rows_of(feeds, [run.found for run in runs], self.info.vocab_size)

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork.

        Raises:
            CapacityError: the limits on tokens or sequences leave no room.
        """
        self._table.fork(seq, child)

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate."""
        assert keep >= 0, "a sequence cannot keep fewer than 0 tokens"
        del self._table.live[seq][keep:]
        return len(self._table.live[seq])

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self._table.live.pop(seq, None)

    def refresh(self) -> None:
        """Take over a user's weights after they were written through `.data`; any other change is seen by itself."""
        self._wrapped.refresh()

    def _sync_weights(self) -> None:
        """Take over changes of a user's own model."""
        self._wrapped.sync_weights()
        if self._wrapped.builds == self._builds:
            return
        if self._table.live:
            raise ModelError("the model's shape has changed while sequences are live: finish or cancel them first")
        self._configure()

    def _runs(self, feed: Feed) -> list[_Run]:
        """Return what has to be read for a feed; nothing where nothing is wanted."""
        tokens = self._table.grown(feed)
        start = len(tokens) - len(feed.tokens)
        asked = [start + index for index in feed.asked]
        if self._habits.shows_all:
            return [_Run(feed, tokens, asked, start, RowBuffer())] if asked or feed.hidden else []
        ends = range(start, len(tokens)) if feed.hidden else asked
        return [_Run(feed, tokens[: at + 1], [at] if at in asked else [], at, RowBuffer()) for at in ends]

    def _groups(self, runs: Sequence[_Run]) -> list[list[_Run]]:
        """Return the runs that can be made side by side. Inner layers are read of one sequence alone."""
        groups: dict[Any, list[_Run]] = {}
        for index, run in enumerate(runs):
            alone = bool(run.feed.layers) or not self._habits.batches
            groups.setdefault((len(run.tokens), index if alone else None), []).append(run)
        return list(groups.values())

    def _call(self, runs: Sequence[_Run]) -> None:
        """Read sequences of one length, and note what is wanted of them."""
        ids = torch.tensor([run.tokens for run in runs], device=self._wrapped.device)
        if not self._habits.shows_all:
            look = self._model.next_row(ids)
            for row, run in enumerate(runs):
                run.found.logits += [look.logits[row]] if run.asked else []
                run.found.hidden += [look.hidden[row]] if run.feed.hidden and look.hidden is not None else []
            return
        count = ids.shape[1]
        keep = [row * count + at for row, run in enumerate(runs) for at in run.asked]
        inner = [LayerRow(at, layer) for at in runs[0].asked for layer in runs[0].feed.layers]
        look = self._model.run(ids, None, count, keep or [0], inner=inner, remembers=False)
        rows = iter(look.logits)
        for row, run in enumerate(runs):
            run.found.logits += islice(rows, len(run.asked))
            run.found.inner += [] if look.inner is None else [look.inner]
            run.found.hidden += [look.hidden[row, run.start :]] if run.feed.hidden and look.hidden is not None else []

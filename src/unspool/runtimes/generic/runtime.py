"""Any causal language model of transformers on its own cache, behind the four methods of a Runtime.

For models that the slot cache cannot serve: attention outside of transformers' interface, recurrent states, hybrids.
Sequences of one cached length that are given the same number of tokens run side by side; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch

from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.generic.cache_pytree import BatchedCache, CacheSlice, can_shorten
from unspool.runtimes.generic.model import CausalModel
from unspool.runtimes.generic.probe import take_stock, try_cache
from unspool.runtimes.generic.row_buffer import RowBuffer, rows_of
from unspool.runtimes.generic.sequence_table import SequenceTable
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import Limit, estimated_bytes_per_token, hard, limits_of
from unspool.runtimes.model_info import describe, text_config
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.hooks import LayerRow
from unspool.runtimes.wrap.wrapped import WrappedModel, shared
from unspool.types import Feed, ModelInfo, Rows, Seq

# A pass over so many tokens costs about what a pass over one does: where a model cannot read several tokens on top of
# its state, reading all of a sequence again is the shorter way to many new ones.
_TOKENS_PER_STEP = 16
# Most states on the way through a feed that are kept, each as large as the newest.
_MOST_PASSED = 8


@dataclass(frozen=True, slots=True)
class _Memory:
    """What is cached of one sequence: the newest share, and earlier ones of it where tokens cannot be taken off."""

    share: CacheSlice
    earlier: tuple[CacheSlice, ...] = ()


@dataclass(slots=True)
class _Job:
    """One feed on its way through one or several calls.

    tokens: of the whole sequence. share: what is cached so far. passed: shares that were cached before, oldest first.
    """

    feed: Feed
    tokens: list[int]
    share: CacheSlice | None
    passed: list[CacheSlice] = field(default_factory=list)
    found: RowBuffer = field(default_factory=RowBuffer)

    @property
    def done(self) -> int:
        """Tokens that have been read."""
        return 0 if self.share is None else self.share.length

    @property
    def start(self) -> int:
        """Where the feed's own tokens begin."""
        return len(self.tokens) - len(self.feed.tokens)

    @property
    def asked(self) -> list[int]:
        """Positions in the whole sequence whose logits are wanted."""
        return [self.start + index for index in self.feed.asked]

    def leave(self) -> None:
        """Note that the share is about to be followed by another one: the first is kept, and the newest ones."""
        if self.share is not None:
            self.passed.append(self.share)
        if len(self.passed) > _MOST_PASSED:
            del self.passed[1]


class GeneralRuntime(Runtime):
    """A causal language model on transformers' own cache objects. Follows the contract of every Runtime.

    Args:
        model: a loaded transformers model.
        own: whether the model is ours to change; see Host.
        pack: whether linear layers are packed on a CPU; see `pack_linears`.
        max_cache_tokens: limit on tokens over all live sequences, see `limits`; the bytes of one are estimated.
        max_sequences: limit on live sequences.
        reason: why the model does not run on the slot cache, for `info.backend`.
        host: the model made ready already; None for a new one.

    Raises:
        ModelError: the model cannot run on its own cache; the message says why.
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
    ) -> None:
        self._wrapped = wrapped or (
            WrappedModel(model, own=True, pack=pack) if own else shared(model, WrappedModel, pack=pack)
        )
        self._limits = (max_sequences, max_cache_tokens)
        self._table = SequenceTable(max_tokens=hard(max_cache_tokens), max_sequences=hard(max_sequences))
        self._memories: dict[Seq, _Memory] = {}
        self._reason = reason
        self._configure()

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """Whether the caller's own module runs, which this runtime then holds."""
        return self._wrapped.in_place

    def _configure(self) -> None:
        """Read everything that depends on the host as it now is."""
        self._model = CausalModel(self._wrapped)
        stock = take_stock(self._model, try_cache)
        self._habits, readable = stock.capabilities, self._model.readable
        dtype = next(self._wrapped.module.parameters()).dtype
        per_token = estimated_bytes_per_token(text_config(self._wrapped.module), dtype)
        self.info = describe(
            self._wrapped.module,
            vocab_size=stock.vocab_size,
            backend=self._describe(),
            batch_invariance_obstacle="it runs on its own cache, and its own attention reads rows together",
            hidden_states=readable.reads_head,
            num_layers=None if readable.layers is None else len(readable.layers),
            reads_whole=bool(self._wrapped.patch) or not self._habits.continues,
            limits=limits_of(*self._limits, bytes_per_token=per_token, device=self._wrapped.device),
            bytes_per_token=None,
        )
        self._builds = self._wrapped.builds

    def _describe(self) -> str:
        capabilities, parts = self._habits, ["general path: transformers' own cache"]
        if self._reason:
            parts.append(f"not the slot cache ({self._reason})")
        parts += self._wrapped.describe()
        parts.append(
            "sequences of one length side by side" if capabilities.schema.can_stack else "one sequence at a time"
        )
        if not capabilities.continues:
            parts.append("token by token after the prompt")
        if capabilities.both_ways:
            parts.append("tokens of a prompt see each other")
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
        jobs = [self._job(feed) for feed in feeds]
        while waiting := [job for job in jobs if job.done < len(job.tokens)]:
            for group in self._groups(waiting):
                self._call(group)
        for job in jobs:
            self._settle(job)
        return rows_of(feeds, [job.found for job in jobs], self.info.vocab_size)

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork.

        Raises:
            CapacityError: the limits on tokens or sequences leave no room.
        """
        self._table.fork(seq, child)
        if seq in self._memories:
            self._memories[child] = self._memories[seq]

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate. A recurrent state goes back to where its last feed can be cut."""
        assert keep >= 0, "a sequence cannot keep fewer than 0 tokens"
        tokens = self._table.live[seq]
        if keep < len(tokens):
            memory = self._memories.pop(seq)
            share = self._shortened(memory, keep)
            if share is not None:
                self._memories[seq] = _Memory(share, tuple(old for old in memory.earlier if old.length < share.length))
            del tokens[0 if share is None else share.length :]
        return len(tokens)

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self._table.live.pop(seq, None)
        self._memories.pop(seq, None)

    def refresh(self) -> None:
        """Take over a user's weights after they were written through `.data`; any other change is seen by itself."""
        self._wrapped.refresh()

    def check(self) -> None:
        """Assert that what is cached of each sequence is as long as the sequence; for tests."""
        for seq, tokens in self._table.live.items():
            assert (self._memories[seq].share.length if seq in self._memories else 0) == len(tokens), "lengths differ"
        assert self._memories.keys() <= self._table.live.keys(), "a released sequence is cached"

    def _sync_weights(self) -> None:
        """Take over changes of a user's own model."""
        self._wrapped.sync_weights()
        if self._wrapped.builds == self._builds:
            return
        if self._table.live:
            raise ModelError("the model's shape has changed while sequences are cached: finish or cancel them first")
        self._configure()

    def _job(self, feed: Feed) -> _Job:
        memory = self._memories.get(feed.seq)
        return _Job(feed, self._table.grown(feed), None if memory is None else memory.share)

    def _groups(self, jobs: Iterable[_Job]) -> Iterable[list[_Job]]:
        """Return the jobs that can run side by side. Inner layers are read of one sequence alone."""
        groups: dict[Any, list[_Job]] = {}
        for job in jobs:
            self._prepare(job)
            alone = bool(job.feed.layers) or not self._habits.schema.can_stack
            key = (job.done, self._num_next(job), job.feed.seq if alone else None)
            groups.setdefault(key, []).append(job)
        return list(groups.values())

    def _prepare(self, job: _Job) -> None:
        """Start a sequence anew where that is a shorter way than token by token."""
        left = len(job.tokens) - job.done
        if self._wrapped.patch or self._habits.both_ways:
            return  # a hook must see every token once, and a token must see the same others
        if not self._habits.continues and job.share is not None and len(job.tokens) < _TOKENS_PER_STEP * (left - 1):
            job.leave()
            job.share = None

    def _num_next(self, job: _Job) -> int:
        """Return how many tokens the next call reads of it."""
        return len(job.tokens) - job.done if self._habits.continues or job.share is None else 1

    def _call(self, jobs: Sequence[_Job]) -> None:
        """Run one call for jobs of the same lengths, and note what it brings."""
        start, count = jobs[0].done, self._num_next(jobs[0])
        ids = torch.tensor([job.tokens[: start + count] for job in jobs], device=self._wrapped.device)
        wanted = [[at - start for at in job.asked if start <= at < start + count] for job in jobs]
        keep = [row * count + at for row, asked in enumerate(wanted) for at in asked]
        inner = [LayerRow(at, layer) for at in wanted[0] for layer in jobs[0].feed.layers]
        with self._wrapped.calling():
            shares = [job.share for job in jobs if job.share is not None]
            tree = self._habits.schema.gathered(shares, start) if shares else None
        keep = keep or [row * count + count - 1 for row in range(len(jobs))]
        hidden = any(job.feed.hidden for job in jobs)
        look = self._model.run(ids, tree, count, keep, hidden=hidden, inner=inner)
        stack, rows = BatchedCache(look.tree, len(jobs), start + count), iter(look.logits)
        for row, job in enumerate(jobs):
            job.found.logits += islice(rows, len(wanted[row]))
            if job.feed.layers and look.inner is not None:
                job.found.inner.append(look.inner)
            if job.feed.hidden and look.hidden is not None:
                job.found.hidden.append(look.hidden[row, max(job.start - start, 0) :])
            job.leave()
            job.share = CacheSlice(stack, row, stack.length)

    def _settle(self, job: _Job) -> None:
        """Let the sequence hold what was read, and what it may have to go back to."""
        assert job.share is not None, "a feed was not read"
        earlier = () if self._can_shorten(job.share) else tuple(job.passed)
        self._table.live[job.feed.seq] = job.tokens
        self._memories[job.feed.seq] = _Memory(job.share, earlier)

    def _can_shorten(self, share: CacheSlice) -> bool:
        return self._habits.shortens and can_shorten(share.stack.tree)

    def _shortened(self, memory: _Memory, keep: int) -> CacheSlice | None:
        """Return the longest share of at most `keep` tokens that can be had."""
        if keep == 0:
            return None
        if self._can_shorten(memory.share):
            return memory.share._replace(length=keep)
        for share in reversed(memory.earlier):
            if share.length <= keep:
                return share
            if self._can_shorten(share):
                return share._replace(length=keep)
        return None

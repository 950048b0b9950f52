"""Any causal language model of transformers on its own cache, or without a cache.

For models that cannot use the slot cache: attention outside of transformers' interface, recurrent states, hybrids.
Sequences of equal length can share a call; nothing is padded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from unspool.errors import ModelError
from unspool.protocols import Runtime
from unspool.runtimes.generic.cache_pytree import BatchedCache, CacheSlice, can_shorten
from unspool.runtimes.generic.capabilities import continues, learn
from unspool.runtimes.generic.job import Job, SequenceCache
from unspool.runtimes.generic.model import CausalModel, ModelOutput
from unspool.runtimes.generic.prompts import ReadPrompts
from unspool.runtimes.generic.replayed_step import RecurrentSteps
from unspool.runtimes.generic.row_buffer import rows_of
from unspool.runtimes.generic.sequence_table import SequenceTable
from unspool.runtimes.kv.check_feeds import check_feeds
from unspool.runtimes.kv.limits import Limit, estimated_bytes_per_token, hard, limits_of
from unspool.runtimes.model_info import describe, has_experts, text_config
from unspool.runtimes.weights.packed_linear import Pack
from unspool.runtimes.wrap.hooks import LayerRow
from unspool.runtimes.wrap.wrapped import WrappedModel, shared
from unspool.tuning import MAX_BATCH_TOKENS, TOKENS_PER_CALL
from unspool.types import Feed, ModelInfo, Rows, Seq


class GenericRuntime(Runtime):
    """A causal language model that is called as transformers' `generate` calls it. Follows the contract of Runtime.

    With a cache, a feed reads its new tokens. Without one, it reads the whole sequence again: in one call if that shows
    the logits of every position, else in one call per asked position (XLNet and XLM predict a place, not a next token).

    Args:
        model: a loaded transformers model.
        owns_model: True if the model is ours to change; see `WrappedModel`.
        pack: see `pack_linears`.
        max_cache_tokens: limit on tokens over all live sequences, see `limits`; bytes per token are estimated.
        max_sequences: limit on live sequences.
        reason: why no faster backend runs the model, for `info.backend`; "" for none.
        use_cache: False to read the whole sequence in every forward (recomputation).
        row_by_row: True for one call per asked position in any case; only without a cache.
        wrapped: the wrapped model; None for a new one.

    Raises:
        ModelError: if the model cannot run so; the message says why.
    """

    info: ModelInfo

    def __init__(
        self,
        model: Any,
        *,
        owns_model: bool,
        pack: Pack = "auto",
        max_cache_tokens: Limit = None,
        max_sequences: Limit = None,
        reason: str = "",
        use_cache: bool = True,
        row_by_row: bool = False,
        wrapped: WrappedModel | None = None,
    ) -> None:
        assert not (use_cache and row_by_row), "`row_by_row` is for a model without a cache"
        if wrapped is None:
            wrapped = (
                WrappedModel(model, owns_model=True, pack=pack)
                if owns_model
                else shared(model, WrappedModel, pack=pack)
            )
        self._wrapped, self._reason = wrapped, reason
        self._use_cache, self._row_by_row = use_cache, row_by_row
        self._limits = (max_sequences, max_cache_tokens)
        self._table = SequenceTable(max_tokens=hard(max_cache_tokens), max_sequences=hard(max_sequences))
        self._caches: dict[Seq, SequenceCache] = {}
        self._configure()

    @property
    def in_place(self) -> bool:  # type: ignore[override]
        """True if a module of the caller runs, which this runtime then holds."""
        return self._wrapped.in_place

    def _configure(self) -> None:
        """Probe the wrapped model, and set everything that depends on it."""
        self._model = CausalModel(self._wrapped)
        self._can, vocab_size = learn(self._model, use_cache=self._use_cache)
        self._prompts = ReadPrompts(self._model, batches=self._can.batches)
        if self._row_by_row or (self._wrapped.patch and not self._use_cache):
            self._can = self._can._replace(shows_all=False)
        readable, module = self._model.readable, self._wrapped.module
        config = text_config(module)
        layers = readable.layers if self._can.shows_all else None
        per_token = 0
        if self._use_cache:
            per_token = estimated_bytes_per_token(config, next(module.parameters()).dtype)
        cache = "on its own cache" if self._use_cache else "without a cache"
        self.info = describe(
            module,
            config,
            vocab_size=vocab_size,
            backend=self._describe(),
            batch_invariance_obstacle=f"it runs {cache}, and its own attention reads rows together",
            hidden_states=readable.reads_head if self._can.shows_all else readable.reads_last,
            num_layers=None if layers is None else len(layers),
            reads_whole=self._reads_whole,
            takes_source=self._use_cache,
            limits=limits_of(*self._limits, bytes_per_token=per_token, device=self._wrapped.device),
            bytes_per_token=None if self._use_cache else 0,
        )
        schema = self._can.schema
        can_replay = schema is not None and schema.is_fixed and self._can.batches and self._can.shows_all
        is_plain = not self._wrapped.in_place and self._wrapped.device.type == "cpu" and not has_experts(config)
        self._steps = RecurrentSteps(self._model, schema) if can_replay and is_plain and schema is not None else None
        self._builds = self._wrapped.builds

    @property
    def _reads_whole(self) -> bool:
        return bool(self._wrapped.patch) or not self._can.continues

    def _describe(self) -> str:
        if self._use_cache:
            parts, slower = ["generic backend: transformers' own cache"], "not the slot cache"
        else:
            parts, slower = ["recomputation: every forward reads the whole sequence"], "no faster path"
        parts += [f"{slower} ({self._reason})"] if self._reason else []
        parts += self._wrapped.describe()
        parts.append("sequences of one length side by side" if self._can.batches else "one sequence at a time")
        if self._can.continues is False:
            parts.append("token by token after the prompt")
        if self._can.both_ways:
            parts.append("tokens of a prompt see each other")
        if not self._can.shows_all:
            parts.append("one pass for each position")
        parts.append("rows differ by rounding in other batches")
        return ", ".join(parts)

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append the feeds and return the asked rows; see Runtime.forward.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
            ModelError: if a prompt's source cannot be read, or if a feed needs a capability that `info` excludes.
        """
        check_feeds(self.info, feeds, takes_source=self._use_cache)
        if any(feed.seq not in self._table.live for feed in feeds):
            self._sync_weights()
        self._table.check_room([(feed.seq, len(feed.tokens)) for feed in feeds])
        if any(len(feed.tokens) > MAX_BATCH_TOKENS for feed in feeds):
            self._can_continue()  # the next long prompt can come in parts
        with self._prompts.opening(feeds):
            jobs = self._done(feeds)
        for feed in feeds:
            self._table.live[feed.seq] = self._table.grown(feed)
        for job in jobs:
            if job.share is not None:
                earlier = () if self._can_shorten(job.share) else tuple(job.passed)
                self._caches[job.feed.seq] = SequenceCache(job.share, earlier)
        return rows_of(feeds, [job.found for job in jobs], self.info.vocab_size)

    def _done(self, feeds: Sequence[Feed]) -> list[Job]:
        """Return the jobs of the feeds, after all of their calls."""
        jobs = [job for feed in feeds for job in self._jobs(feed)]
        while waiting := [job for job in jobs if job.num_left]:
            for group in self._groups(waiting):
                self._call(group)
        return jobs

    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy a sequence; see Runtime.fork.

        Raises:
            CapacityError: if the limits on tokens or sequences leave no room.
        """
        self._table.fork(seq, child)
        if seq in self._caches:
            self._caches[child] = self._caches[seq]
        self._prompts.fork(seq, child)

    def truncate(self, seq: Seq, keep: int) -> int:
        """Shorten a sequence; see Runtime.truncate. A cache that cannot be cut goes back to an earlier one."""
        assert keep >= 0, "a sequence cannot keep fewer than 0 tokens"
        tokens = self._table.live[seq]
        if keep < len(tokens):
            if seq in self._caches:
                cut = self._caches.pop(seq).shortened(keep, self._can_shorten)
                keep = 0
                if cut is not None:
                    self._caches[seq], keep = cut, cut.newest.length
            del tokens[keep:]
        return len(tokens)

    def release(self, seq: Seq) -> None:
        """Forget a sequence; see Runtime.release."""
        self._table.live.pop(seq, None)
        self._caches.pop(seq, None)
        self._prompts.release(seq)

    def refresh(self) -> None:
        """Apply a user's weights after they were written through `.data`; other changes are found automatically."""
        self._wrapped.refresh()

    def check(self) -> None:
        """Assert that the cache of each sequence is as long as the sequence; for tests."""
        lengths = {seq: len(tokens) for seq, tokens in self._table.live.items() if tokens and self._use_cache}
        assert {seq: cache.newest.length for seq, cache in self._caches.items()} == lengths, "lengths differ"

    def _sync_weights(self) -> None:
        """Apply changes of a user's own model."""
        self._wrapped.sync_weights()
        if self._wrapped.builds == self._builds:
            return
        if self._table.live:
            raise ModelError("the model's shape has changed while sequences are live: finish or cancel them first")
        self._configure()

    def _jobs(self, feed: Feed) -> list[Job]:
        """Return the work of a feed: one job, or without `shows_all` one per position to return."""
        tokens = self._table.grown(feed)
        start = len(tokens) - len(feed.tokens)
        asked = [start + index for index in feed.asked]
        if self._use_cache:
            share = self._caches[feed.seq].newest if feed.seq in self._caches else None
            return [Job(feed, tokens, asked, start, share, 0 if share is None else share.length)]
        if self._can.shows_all:
            return [Job(feed, tokens, asked, start)] if asked or feed.hidden else []
        ends = range(start, len(tokens)) if feed.hidden else asked
        return [Job(feed, tokens[: at + 1], [at] if at in asked else [], at) for at in ends]

    def _groups(self, jobs: Iterable[Job]) -> list[list[Job]]:
        """Return the jobs that can share a call. A call returns the inner layers of one sequence only."""
        groups: dict[Any, list[Job]] = {}
        for job in jobs:
            self._start_again_if_faster(job)
            alone = bool(job.feed.layers) or not self._can.batches
            prompt = self._prompts.group(job.feed.seq, is_read=job.share is not None)
            groups.setdefault((job.done, self._num_next(job), id(job) if alone else None, prompt), []).append(job)
        return list(groups.values())

    def _start_again_if_faster(self, job: Job) -> None:
        """Read a sequence from its first token if that takes less time than token by token."""
        if job.share is None or len(job.tokens) >= TOKENS_PER_CALL * (job.num_left - 1):
            return
        has_source = self._prompts.length(job.feed.seq) is not None
        if not (self._can_continue() or self._wrapped.patch or self._can.both_ways or has_source):
            job.advance(None, 0)  # a hook must see every token once, and a token must see the same other tokens

    def _num_next(self, job: Job) -> int:
        """Return the number of tokens that the next call reads."""
        if job.share is None:
            return self._prompts.length(job.feed.seq) or job.num_left
        return job.num_left if job.num_left > 1 and self._can_continue() else 1

    def _can_continue(self) -> bool:
        """Return whether several tokens can be read at once on top of a cache; probe this if it is not known."""
        if self._can.continues is None:
            self._can = self._can._replace(continues=continues(self._model))
            self.info = replace(self.info, backend=self._describe(), reads_whole=self._reads_whole)
        return bool(self._can.continues)

    def _call(self, jobs: Sequence[Job]) -> None:
        """Run one call for jobs of the same lengths, and distribute its rows."""
        start, stop = jobs[0].done, jobs[0].done + self._num_next(jobs[0])
        if start == 0 and self._prompts.length(jobs[0].feed.seq) is not None:
            self._prompts.read(jobs)
            return
        # numpy reads a list several times as fast as torch.
        ids = torch.from_numpy(np.array([job.tokens[:stop] for job in jobs], dtype=np.int64)).to(self._wrapped.device)
        asked = [[at - start for at in job.asked if start <= at < stop] for job in jobs]
        output, stack = self._replayed(ids, jobs, asked) or self._called(ids, jobs, asked)
        rows = iter(output.logits)
        for row, job in enumerate(jobs):
            job.found.logits += islice(rows, len(asked[row]))
            if job.feed.layers and output.inner is not None:
                job.found.inner.append(output.inner)
            if job.feed.hidden and output.hidden is not None:
                first = stop - output.hidden.shape[1]
                job.found.hidden.append(output.hidden[row, max(job.start - first, 0) :])
            job.advance(CacheSlice(stack, row, stop) if self._use_cache else None, stop)

    def _called(
        self, ids: torch.Tensor, jobs: Sequence[Job], asked: Sequence[Sequence[int]]
    ) -> tuple[ModelOutput, BatchedCache]:
        output = self._output(ids, jobs, asked) if self._can.shows_all else self._last_rows(ids, asked)
        return output, BatchedCache(output.tree, len(jobs), ids.shape[1])

    def _replayed(
        self, ids: torch.Tensor, jobs: Sequence[Job], asked: Sequence[Sequence[int]]
    ) -> tuple[ModelOutput, BatchedCache] | None:
        """Run a call that a replay can repeat; None for any other call."""
        shares = [job.share for job in jobs if job.share is not None]
        is_step = len(shares) == len(jobs) and jobs[0].done == ids.shape[1] - 1 and all([*at] == [0] for at in asked)
        if self._steps is None or not is_step or any(job.feed.hidden or job.feed.layers for job in jobs):
            return None
        if any(self._prompts.length(job.feed.seq) is not None for job in jobs):
            return None
        found = self._steps.run(ids, shares)
        return None if found is None else (ModelOutput(found[0], None, None, None), found[1])

    def _last_rows(self, ids: torch.Tensor, asked: Sequence[Sequence[int]]) -> ModelOutput:
        """Return the logits after the last token of each sequence that asks for them."""
        output = self._model.next_row(ids)
        return output._replace(logits=output.logits[[row for row, at in enumerate(asked) if at]])

    def _output(self, ids: torch.Tensor, jobs: Sequence[Job], asked: Sequence[Sequence[int]]) -> ModelOutput:
        """Return the logits of the asked positions, counted from the first token that the call reads."""
        start, count = jobs[0].done, self._num_next(jobs[0])
        keep = [row * count + at for row, positions in enumerate(asked) for at in positions]
        keep = keep or [row * count + count - 1 for row in range(len(jobs))]
        inner = [LayerRow(at, layer) for at in asked[0] for layer in jobs[0].feed.layers]
        shares, tree = [job.share for job in jobs if job.share is not None], None
        if shares and self._can.schema is not None:
            with self._wrapped.calling():
                tree = self._can.schema.gathered(shares, start)
        hidden = any(job.feed.hidden for job in jobs)
        later = self._prompts.later(jobs[0].feed.seq, ids)
        return self._model.run(
            ids, tree, count, keep, hidden=hidden, inner=inner, remembers=self._use_cache, later=later
        )

    def _can_shorten(self, share: CacheSlice) -> bool:
        return self._can.shortens and can_shorten(share.stack.tree)

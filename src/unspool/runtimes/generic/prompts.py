"""Prompts with embeddings, images or audio on the generic backend, and the arguments of the calls that follow them.

Owns: the source of each sequence. Does not know: tokens and caches of sequences.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from unspool.errors import ModelError
from unspool.runtimes.generic.cache_pytree import BatchedCache, CacheSlice, Tree, leaves, rebuild
from unspool.runtimes.generic.job import Job
from unspool.runtimes.generic.model import CausalModel
from unspool.runtimes.wrap.prompt_batch import PromptBatch, ReadBatches
from unspool.runtimes.wrap.prompt_reader import PromptReader, next_arguments
from unspool.types import Feed, Seq, Source


@dataclass(slots=True, eq=False)
class _Prompt:
    """The prompt of a sequence and its forks. length: in tokens. later: arguments after it; None before it is read."""

    source: Source
    length: int
    later: Mapping[str, Any] | None = None


class ReadPrompts:
    """The prompts of live sequences that have a source.

    Args:
        model: reads them.
        batches: True if sequences of one length can share a call.
    """

    def __init__(self, model: CausalModel, *, batches: bool) -> None:
        self._model, self._can_batch = model, batches
        self._of: dict[Seq, _Prompt] = {}
        self._read = ReadBatches(self._read_batch)

    @contextmanager
    def opening(self, feeds: Sequence[Feed]) -> Iterator[None]:
        """Take the sources of new sequences; if the context raises, forget them."""
        opened = [feed for feed in feeds if feed.source is not None]
        for feed in opened:
            assert feed.source is not None and feed.seq not in self._of, "a source comes with the first feed only"
            self._of[feed.seq] = _Prompt(feed.source, len(feed.tokens))
        try:
            yield
        except BaseException:
            for feed in opened:
                self.release(feed.seq)
            raise

    def fork(self, seq: Seq, child: Seq) -> None:
        """Give `child` the same prompt."""
        if seq in self._of:
            self._of[child] = self._of[seq]

    def release(self, seq: Seq) -> None:
        """Forget a sequence."""
        self._of.pop(seq, None)

    def length(self, seq: Seq) -> int | None:
        """Return the tokens of a prompt with a source; None without a source."""
        return self._of[seq].length if seq in self._of else None

    def group(self, seq: Seq, *, is_read: bool) -> int | None:
        """Return the identity that sequences of one call share: of a batch, or of a prompt; None without a source."""
        if seq not in self._of:
            return None
        prompt = self._of[seq]
        return id(prompt) if is_read else id(prompt.source.inputs)

    def read(self, jobs: Sequence[Job]) -> None:
        """Read the prompts of jobs from one batch.

        Raises:
            ModelError: if the model cannot read them.
        """
        stacks: dict[int, BatchedCache] = {}
        for job in jobs:
            prompt, feed = self._of[job.feed.seq], job.feed
            # A sequence that is read again asks for no row of its prompt.
            first = feed if feed.source is not None else Feed(
                seq=feed.seq, tokens=job.tokens[: prompt.length], asked=(), source=prompt.source
            )  # fmt: skip
            batch = self._read.of(first, [each.feed for each in jobs if each.feed.source is not None] or [first])
            row = batch.rows[prompt.source.row]
            rows = row.rows(first)
            assert rows is not None, "a prompt of the batch was not read"
            job.found.logits += rows.logits
            job.found.hidden += [] if rows.hidden is None else [rows.hidden]
            job.found.inner += [] if rows.inner is None else [rows.inner]
            prompt.later = _row_of(batch, prompt.source.row)
            job.advance(self._share(batch, prompt, stacks), prompt.length)

    def later(self, seq: Seq, ids: torch.Tensor) -> dict[str, Any] | None:
        """Return the arguments of a call for sequences of this prompt, by the model's own rules; None without a source.

        Args:
            seq: one of the sequences.
            ids: [sequences, length], the whole sequences.
        """
        if seq not in self._of:
            return None
        prompt = self._of[seq]
        assert prompt.later is not None, "the prompt is read before its continuation"
        arguments, further = dict(prompt.later), ids.shape[1] - prompt.length - 1
        if further:
            arguments = next_arguments(self._model.wrapped.module, None, arguments, further)
        return {name: _repeated(name, value, len(ids)) for name, value in arguments.items()}

    def _read_batch(self, inputs: Mapping[str, Any], feeds: Sequence[Feed]) -> PromptBatch:
        model = self._model
        with model.wrapped.calling() as module:
            readable, is_plain = model.readable, not model.wrapped.patch
            reader = PromptReader(module, readable.layers, reads_head=readable.reads_head, narrows=is_plain)
            return reader.read(inputs, feeds)

    def _share(self, batch: PromptBatch, prompt: _Prompt, stacks: dict[int, BatchedCache]) -> CacheSlice:
        """Return the cache of one prompt, without padding."""
        count, number = len(batch.rows), prompt.source.row
        places = batch.rows[number].places
        if len(places) == batch.width and (count == 1 or self._can_batch):
            stack = stacks.setdefault(id(batch), BatchedCache(batch.cache, count, prompt.length))
            return CacheSlice(stack, number, prompt.length)
        tensors = leaves(batch.cache).values()
        if not all(each.ndim == 4 and (each.shape[0], each.shape[2]) == (count, batch.width) for each in tensors):
            name = type(self._model.wrapped.module).__name__
            raise ModelError(f"{name} keeps padding in its cache: give prompts with images or audio one by one")
        tree: Tree = rebuild(batch.cache, lambda _, each: each[number : number + 1, :, places.to(each.device)])
        return CacheSlice(BatchedCache(tree, 1, prompt.length), 0, prompt.length)


def _batch_dim(name: str, value: torch.Tensor) -> int:
    """Return the batch dimension of an argument. Positions can have axes before it."""
    return 1 if name == "position_ids" and value.ndim == 3 else 0


def _row_of(batch: PromptBatch, row: int) -> dict[str, Any]:
    """Return the arguments that follow one prompt of a batch, without padding."""
    count, places, later = len(batch.rows), batch.rows[row].places, batch.width + 1
    columns = None if len(places) == batch.width else torch.cat([places, places.new_tensor([batch.width])])

    def cut(name: str, value: Any) -> Any:
        if not isinstance(value, torch.Tensor) or not value.ndim:
            return value
        dim = _batch_dim(name, value)
        value = value.narrow(dim, row, 1) if value.shape[dim] == count else value
        if columns is None or value.ndim <= dim + 1 or value.shape[dim + 1] != later:
            return value
        return value.index_select(dim + 1, columns.to(value.device))

    return {name: cut(name, value) for name, value in batch.later.items()}


def _repeated(name: str, value: Any, count: int) -> Any:
    """Return an argument of one row for `count` equal rows."""
    if count == 1 or not isinstance(value, torch.Tensor) or not value.ndim:
        return value
    dim = _batch_dim(name, value)
    return value.repeat_interleave(count, dim) if value.shape[dim] == 1 else value

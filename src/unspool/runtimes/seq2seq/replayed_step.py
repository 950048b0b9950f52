"""A decode step of a model with an encoder, as `Replay` records and repeats it: any number of rows, at any length."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch

from unspool.runtimes.kv.attention import AttentionParams, attending
from unspool.runtimes.replay.replay import STEP_SIZES
from unspool.runtimes.replay.tracer import Tracer
from unspool.runtimes.seq2seq.attention import SUPPORTED, EqualLengthAttention
from unspool.runtimes.seq2seq.encoder_cache import KeysValues
from unspool.runtimes.seq2seq.equal_length_batch import EqualLengthBatch
from unspool.runtimes.seq2seq.self_cache import SelfCache

Logits: TypeAlias = Callable[[SelfCache, KeysValues, torch.Tensor], torch.Tensor]
"""(cache, stand-ins for the sources, ids [rows, width]) --> logits [rows * width, vocab]; inside `attending`"""


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One token per row, with logits for each; see `ReplayedPass`.

    Replay and model write the same keys and values to the same positions.

    logits: the model; always the same function. attention: of the pass. sources: stand-ins. ids: [rows, 1].
    """

    cache_calls: ClassVar[Collection[str]] = ()
    logits: Logits
    attention: EqualLengthAttention
    sources: KeysValues
    ids: torch.Tensor

    @property
    def rows(self) -> int:
        """Number of sequences."""
        return len(self.ids)

    @property
    def size(self) -> tuple[int, int]:
        """Number of sequences, and of bits of the length: a model can compute long sequences by other means."""
        return len(self.ids), self.attention.cache.batch.stop.bit_length()

    def model(self) -> torch.Tensor:
        """Run the model. --> [rows, vocab]"""
        return self.logits(self.attention.cache, self.sources, self.ids)

    def inputs(self) -> tuple[Any, ...]:
        """Return the inputs of the program."""
        batch = self.attention.cache.batch
        return self.attention, self.ids, len(self.ids), batch.start, batch.stop

    def trace(self, number: int) -> Tracer:
        """Trace the step. Its tokens are repeated, so that the model knows each of them.

        Raises:
            Unrecordable: see `Tracer`.
        """
        size = STEP_SIZES[number]
        ids = self.ids[torch.arange(size.rows, device=self.ids.device) % len(self.ids)]
        sources = [(torch.zeros_like(key), torch.zeros_like(value)) for key, value in self.sources]
        tracer = Tracer({"ids": ids}, size._asdict())
        cache = _TracedCache(tracer, size.start, self.attention.cache.num_layers)
        with attending(_TracedAttention(tracer)), tracer:
            result = self.logits(cache, sources, ids)
        tracer.finish(result)
        return tracer


class _TracedCache(SelfCache):
    """The decoder's own cache in a traced step: records its calls, and stores nothing."""

    def __init__(self, tracer: Tracer, start: int, num_layers: int) -> None:
        super().__init__(EqualLengthBatch([], start, 1, spans_gaps=False), num_layers, returns_all=False)
        self._tracer = tracer

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Record that one layer's keys and values are written."""
        self._tracer.call_cache("write", (key_states, value_states, layer_idx))
        with torch._C.DisableTorchFunction():
            return self.stand_in(key_states), self.stand_in(value_states)


class _TracedAttention:
    """The attention of a traced step: records its calls, and attends to nothing."""

    supported_params: ClassVar[frozenset[str]] = SUPPORTED

    def __init__(self, tracer: Tracer) -> None:
        self._tracer = tracer

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Record that one layer attends. --> [rows, heads, value width], zeros"""
        width = value.shape[-1]
        with torch._C.DisableTorchFunction():
            result = query.new_zeros(query.shape[0] * query.shape[2], query.shape[1], width)
        self._tracer.call_cache("attend_queries", (query, width, params), result)
        return result

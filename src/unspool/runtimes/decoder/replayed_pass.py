"""A flat pass, as `Replay` records and repeats it: any number of rows and of asked rows."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import torch

from unspool.runtimes.kv.attention import AttentionParams, attending
from unspool.runtimes.kv.cache import UnmaskedCache
from unspool.runtimes.replay.tracer import Tracer

Logits: TypeAlias = Callable[[Any, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(cache, ids [1, rows], positions [1, rows], keep [asked]) --> logits [asked, vocab]"""


class Size(NamedTuple):
    """Size of a pass. rows: number of tokens. asked: number of rows of logits."""

    rows: int
    asked: int


# A pair of numbers names one kind of size: no pair is a multiple of both kinds.
SIZES: Final = (Size(11, 5), Size(13, 7))


@dataclass(frozen=True, slots=True)
class FlatPass:
    """One flat pass; see `ReplayedPass`. At least one row is asked.

    Replay and model write the same keys and values to the same positions.

    logits: the model; always the same function. num_layers: of the cache. ids, positions: [1, rows]. keep: [asked], the
    asked rows, each at most once.
    """

    cache_calls: ClassVar[Collection[str]] = ("update", "attend")
    logits: Logits
    num_layers: int
    cache: Any
    ids: torch.Tensor
    positions: torch.Tensor
    keep: torch.Tensor

    @property
    def rows(self) -> int:
        """Number of tokens."""
        return self.ids.shape[1]

    @property
    def size(self) -> Size:
        """Numbers of tokens and of rows of logits."""
        return Size(self.ids.shape[1], self.keep.shape[0])

    def model(self) -> torch.Tensor:
        """Run the model. --> [asked, vocab]"""
        return self.logits(self.cache, self.ids, self.positions, self.keep)

    def inputs(self) -> tuple[Any, ...]:
        """Return the inputs of the program."""
        return self.cache, self.ids, self.positions, self.keep, *self.size

    def trace(self, number: int) -> Tracer:
        """Trace the pass. Its tokens are repeated, so that the model knows each of them.

        Raises:
            Unrecordable: see `Tracer`.
        """
        size, device = SIZES[number], self.ids.device
        columns = torch.arange(size.rows, device=device) % self.ids.shape[1]
        ids, positions = self.ids[:, columns], self.positions[:, columns]
        keep = torch.arange(size.asked, device=device)
        tracer = Tracer({"ids": ids, "positions": positions, "keep": keep}, size._asdict())
        cache = TracedCache(tracer, self.num_layers)
        with attending(cache), tracer:
            result = self.logits(cache, ids, positions, keep)
        tracer.finish(result)
        return tracer


class TracedCache(UnmaskedCache):
    """Cache of a traced pass: records its calls, stores nothing, and attends to nothing."""

    def __init__(self, tracer: Tracer, num_layers: int) -> None:
        super().__init__()
        self._tracer, self._num_layers = tracer, num_layers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Record that one layer's keys and values are written."""
        states = (key_states, value_states)
        self._tracer.call_cache("update", (*states, layer_idx), states)
        return states

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, params: AttentionParams
    ) -> torch.Tensor:
        """Record that one layer attends. --> [rows, heads, value width], zeros"""
        with torch._C.DisableTorchFunction():
            shape = (query.shape[2], query.shape[1], value.shape[-1])
            result = torch.zeros(shape, dtype=query.dtype, device=query.device)
        self._tracer.call_cache("attend", (query, key, value, params), result)
        return result

    def __len__(self) -> int:
        return self._num_layers

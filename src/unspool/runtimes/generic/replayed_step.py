"""Replay of recurrent models: steps of one token per row, over states of fixed size."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from unspool.runtimes.generic.cache_pytree import (
    BatchedCache,
    CacheSchema,
    CacheSlice,
    Path,
    Tree,
    frame,
    leaves,
    rebuild,
)
from unspool.runtimes.generic.model import CausalModel
from unspool.runtimes.replay.operators import Unrecordable
from unspool.runtimes.replay.replay import STEP_SIZES, Replay
from unspool.runtimes.replay.tracer import Tracer
from unspool.runtimes.wrap.call_state import usable_rows


class RecurrentSteps:
    """Steps of a model with recurrent states in place of a growing cache.

    Args:
        model: runs steps that are not recorded.
        schema: of its cache; `is_fixed`.

    Attributes:
        replay: of the steps.
    """

    def __init__(self, model: CausalModel, schema: CacheSchema) -> None:
        self._model, self._schema = model, schema
        self.replay = Replay(version=lambda: model.wrapped.version)
        self._frame: dict[Path, Any] | None = None

    def run(self, ids: torch.Tensor, shares: Sequence[CacheSlice]) -> tuple[torch.Tensor, BatchedCache] | None:
        """Read the last token of each sequence.

        Args:
            ids: [rows, length], the whole sequences.
            shares: the states of all tokens before.

        Returns:
            Logits [rows, vocab] float32, and the new states. None if the steps cannot be recorded, or if flags in the
            caches differ from the recorded ones.
        """
        if self.replay.obstacle:
            return None
        rows, length = ids.shape
        if self.replay.waits(rows):
            with self._model.wrapped.calling():
                logits, tree = self._model.step(ids, self._schema.gathered(shares, length - 1))
            return usable_rows(logits), BatchedCache(tree, rows, length)
        first = shares[0].stack
        if self._frame is None:
            self._frame = first.frame
        if any(share.stack.frame is not self._frame and share.stack.frame != self._frame for share in shares):
            return None
        step = _Step(self._model, self._schema, ids, shares)
        with self._model.wrapped.calling():
            logits, *states = self.replay.run(step)
        if step.tree is not None:
            return usable_rows(logits), BatchedCache(step.tree, rows, length)
        return usable_rows(logits), first.changed(dict(zip(first.tensors, states, strict=True)), rows, length)


@dataclass(slots=True)
class _Step:
    """One step; see `ReplayedPass`. The results are logits [rows, vocab], and states.

    tree: the cache, if the model has run; else None.
    """

    cache_calls: ClassVar[Collection[str]] = ()
    causal: CausalModel
    schema: CacheSchema
    ids: torch.Tensor
    shares: Sequence[CacheSlice]
    tree: Tree | None = None

    @property
    def rows(self) -> int:
        return len(self.ids)

    @property
    def size(self) -> int:
        return len(self.ids)

    def model(self) -> tuple[torch.Tensor, ...]:
        logits, self.tree = self._call(self.ids, self.schema.gathered_states(self.shares))
        return logits, *leaves(self.tree).values()

    def inputs(self) -> tuple[Any, ...]:
        rows, length = self.ids.shape
        return None, self.ids, *self.schema.gathered_states(self.shares).values(), rows, length - 1, length

    def trace(self, number: int) -> Tracer:
        size, device = STEP_SIZES[number], self.ids.device
        rows = torch.arange(size.rows, device=device) % len(self.ids)
        ids = self.ids[rows][:, torch.arange(size.stop, device=device) % self.ids.shape[1]]
        states = self.schema.repeated(self.schema.gathered_states(self.shares), rows)
        inputs = {"ids": ids} | {f"state_{index}": state for index, state in enumerate(states.values())}
        tracer = Tracer(inputs, size._asdict(), written=states.values())
        with tracer:
            logits, tree = self._call(ids, states)
        if frame(tree) != self.shares[0].stack.frame:
            raise Unrecordable("its cache counts tokens")
        tracer.finish(logits, *leaves(tree).values())
        return tracer

    def _call(self, ids: torch.Tensor, states: Mapping[Path, torch.Tensor]) -> tuple[torch.Tensor, Tree]:
        return self.causal.step(ids, rebuild(self.shares[0].stack.tree, lambda path, _: states[path]))

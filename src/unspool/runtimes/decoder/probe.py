"""The probe of the slot cache: learns the cache layout of a model, and compares passes with the model's own forward."""

from __future__ import annotations

from typing import Any, Protocol

import torch

from unspool.errors import ModelError
from unspool.runtimes.kv.attention_plan import AttentionPlan
from unspool.runtimes.kv.cache import ShapeProbeCache, SlotCache
from unspool.runtimes.kv.pool import Layout, SlotPool
from unspool.runtimes.kv.segments import Segment
from unspool.runtimes.model_info import sliding_layers
from unspool.runtimes.wrap.probe import difference
from unspool.types import Rows


class Pass(Protocol):
    """Runs one flat pass; see `DecoderModel.run`. Raises: ModelError: if the model cannot run it."""

    def __call__(
        self,
        cache: Any,
        tokens: list[int],
        positions: list[int],
        asked: list[int],
        hidden: list[int] | None = None,
        /,
    ) -> Rows: ...


def learn_layout(module: Any, run: Pass) -> Layout:
    """Run one token, and return the cache layout of each layer.

    Raises:
        ModelError: if a layer does not attend through the slot cache, or does not tell how.
    """
    notes = ShapeProbeCache()
    run(notes, [0], [0], [0])
    kind = type(module).__name__
    if not notes.layouts or sorted(notes.layouts) != list(range(len(notes.layouts))):
        raise ModelError(f"{kind} does not keep keys and values in every layer: not supported in this version")
    if sorted(notes.windows) != sorted(notes.layouts) or notes.num_calls != len(notes.layouts):
        raise ModelError(f"{kind} has layers that attend by other means: not supported in this version")
    if any(notes.windows[index] is None for index in sliding_layers(module) if index in notes.windows):
        raise ModelError(f"{kind} does not tell the width of its sliding windows: not supported in this version")
    return tuple(notes.layouts[index] for index in range(len(notes.layouts)))


def compare(
    module: Any, layout: Layout, run: Pass, reference: torch.Tensor, tokens: list[int], reads_head: bool
) -> int:
    """Feed the tokens in two parts beside another sequence, and compare with the model's own logits.

    Args:
        reference: the model's own logits, [tokens, vocab] float32.
        reads_head: True if the second part asks for the input of the head too.

    Returns:
        The width of the logits.

    Raises:
        ModelError: if they differ by more than rounding.
    """
    pool, half = SlotPool(layout, len(tokens), 2), max(1, len(tokens) // 2)
    device = layout[0].device
    first = [Segment(pool, 0, 0, half, 0), Segment(pool, 1, 0, len(tokens), half)]
    cache = SlotCache(AttentionPlan(first, "loop", device), len(layout))
    positions = [*range(half), *range(len(tokens))]
    found = run(cache, tokens[:half] + tokens[::-1], positions, list(range(half))).logits
    if half < len(tokens):
        rest = list(range(half))
        cache = SlotCache(AttentionPlan([Segment(pool, 0, half, half, 0)], "loop", device), len(layout))
        hidden = rest if reads_head else None
        second = run(cache, tokens[half:], list(range(half, len(tokens))), rest, hidden).logits
        found = torch.cat([found, second])
    if reason := difference(module, found, reference, "the slot cache"):
        raise ModelError(f"{type(module).__name__} {reason}: not supported in this version")
    return found.shape[-1]

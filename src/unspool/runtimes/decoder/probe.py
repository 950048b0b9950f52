"""The probe of the slot cache: learns the cache layout of a model, and compares passes with the model's own forward."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch

from unspool.errors import ModelError
from unspool.runtimes.kv.attention_plan import AttentionPlan
from unspool.runtimes.kv.cache import FirstTokensCache, SlotCache
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


class Opening(NamedTuple):
    """The first tokens of a probe, read by the model with our attention.

    layout: of the cache. states: keys and values per layer, [1, heads, tokens, width]. logits: of the first token,
    [1, vocab].
    """

    layout: Layout
    states: list[tuple[torch.Tensor, torch.Tensor]]
    logits: torch.Tensor


def read_opening(module: Any, run: Pass, tokens: list[int]) -> Opening:
    """Read the first tokens of a probe, and learn the cache layout of each layer.

    Raises:
        ModelError: if a layer does not attend through the slot cache, or does not tell how.
    """
    notes = FirstTokensCache()
    # One row of several: a model can ignore the choice of rows.
    logits = run(notes, tokens, list(range(len(tokens))), [0]).logits
    kind = type(module).__name__
    if not notes.layouts or sorted(notes.layouts) != list(range(len(notes.layouts))):
        raise ModelError(f"{kind} does not keep keys and values in every layer: not supported in this version")
    if sorted(notes.windows) != sorted(notes.layouts) or notes.num_calls != len(notes.layouts):
        raise ModelError(f"{kind} has layers that attend by other means: not supported in this version")
    if any(notes.windows[index] is None for index in sliding_layers(module) if index in notes.windows):
        raise ModelError(f"{kind} does not tell the width of its sliding windows: not supported in this version")
    layers = range(len(notes.layouts))
    return Opening(tuple(notes.layouts[index] for index in layers), [notes.states[index] for index in layers], logits)


def compare(
    module: Any, opening: Opening, run: Pass, reference: torch.Tensor, tokens: list[int], reads_head: bool
) -> int:
    """Feed the tokens after the opening beside another sequence, and compare with the model's own logits.

    Args:
        reference: the model's own logits, [tokens, vocab] float32.
        reads_head: True to ask for the input of the head too.

    Returns:
        The width of the logits.

    Raises:
        ModelError: if they differ by more than rounding.
    """
    layout, start, count = opening.layout, opening.states[0][0].shape[2], len(tokens)
    found, expected = opening.logits, reference[:1]
    if start < count:
        pool = SlotPool(layout, count, 2)
        for layer, (keys, values) in enumerate(opening.states):
            pool.keys[layer][0, :, :start].copy_(keys[0])
            pool.values[layer][0, :, :start].copy_(values[0])
        rest = list(range(start, count))
        segments = [Segment(pool, 0, start, len(rest), 0), Segment(pool, 1, 0, count, len(rest))]
        cache = SlotCache(AttentionPlan(segments, "loop", layout[0].device), len(layout))
        asked = list(range(len(rest)))
        hidden = asked if reads_head else None
        rows = run(cache, tokens[start:] + tokens[::-1], [*rest, *range(count)], asked, hidden).logits
        found, expected = torch.cat([found, rows]), torch.cat([expected, reference[start:]])
    if reason := difference(module, found, expected, "the slot cache"):
        raise ModelError(f"{type(module).__name__} {reason}: not supported in this version")
    return found.shape[-1]

"""Checks of the feeds of one pass, shared by all runtimes over transformers models."""

from __future__ import annotations

from collections.abc import Sequence

from unspool.errors import ModelError
from unspool.types import Feed, ModelInfo


def check_feeds(info: ModelInfo, feeds: Sequence[Feed], *, takes_source: bool = False) -> None:
    """Check that the model can compute these feeds.

    Args:
        info: the abilities of the model.
        feeds: of one pass.
        takes_source: True if a feed can bring a source for an encoder.

    Raises:
        ModelError: if a feed brings a source to a decoder, or asks for rows that `info` says are not available.
    """
    assert len({feed.seq for feed in feeds}) == len(feeds), "two feeds name the same sequence"
    assert all(feed.tokens for feed in feeds), "a feed is empty"
    if not takes_source and any(feed.source is not None for feed in feeds):
        raise ModelError(f"{info.name} is a decoder and takes no source")
    if any(feed.invariant for feed in feeds) and not info.batch_invariant:
        reason = info.batch_invariance_obstacle
        raise ModelError(f"{info.name} cannot keep a row independent of other rows: {reason}")
    if any(feed.hidden for feed in feeds) and not info.hidden_states:
        raise ModelError(f"hidden states of {info.name} cannot be read: its head does not show its input")
    if layers := [layer for feed in feeds for layer in feed.layers]:
        if info.num_layers is None:
            raise ModelError(f"{info.name} has no inner layers that its own head can read")
        assert min(layers) >= 0 and max(layers) < info.num_layers, "a feed names a layer that is not there"

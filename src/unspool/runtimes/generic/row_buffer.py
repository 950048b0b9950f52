"""What is gathered for each feed on its way through several calls, and the `Rows` made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from unspool.types import Feed, Rows


@dataclass(slots=True)
class RowBuffer:
    """What has been found for one feed, in the order of its tokens.

    logits: [vocab] each. hidden: [tokens, width] each. inner: [rows, vocab] each.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)
    inner: list[torch.Tensor] = field(default_factory=list)


def rows_of(feeds: Sequence[Feed], found: Sequence[RowBuffer], vocab_size: int) -> Rows:
    """Return the rows of all feeds, in their order, fit for use where gradients are recorded."""
    logits = [row for each in found for row in each.logits]
    hidden = [part for each in found for part in each.hidden]
    inner = [part for each in found for part in each.inner]
    nothing = torch.empty(0, vocab_size, dtype=torch.float32, device="cpu")
    return Rows(
        torch.stack(logits) if logits else nothing,
        torch.cat(hidden) if hidden else None,
        (torch.cat(inner) if inner else nothing) if any(feed.layers for feed in feeds) else None,
    )

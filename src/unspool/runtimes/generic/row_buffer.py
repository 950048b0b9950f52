"""Rows per feed: collected over several calls, split, and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from unspool.types import Feed, Rows


@dataclass(slots=True)
class RowBuffer:
    """The rows of one feed so far, in the order of its tokens.

    logits: [vocab] each. hidden: [tokens, width] each. inner: [rows, vocab] each.
    """

    logits: list[torch.Tensor] = field(default_factory=list)
    hidden: list[torch.Tensor] = field(default_factory=list)
    inner: list[torch.Tensor] = field(default_factory=list)


def rows_of(feeds: Sequence[Feed], found: Sequence[RowBuffer], vocab_size: int) -> Rows:
    """Return the rows of all feeds, in their order, as tensors that autograd can use."""
    logits = [row for each in found for row in each.logits]
    hidden = [part for each in found for part in each.hidden]
    inner = [part for each in found for part in each.inner]
    return Rows(
        torch.stack(logits) if logits else _no_rows(vocab_size),
        torch.cat(hidden) if hidden else None,
        (torch.cat(inner) if inner else _no_rows(vocab_size)) if any(feed.layers for feed in feeds) else None,
    )


def _no_rows(vocab_size: int) -> torch.Tensor:
    return torch.empty(0, vocab_size, dtype=torch.float32, device="cpu")


def split_rows(rows: Rows, feeds: Sequence[Feed]) -> list[Rows]:
    """Return the rows of each feed, in their order."""
    found, num_logits, num_hidden, num_inner = [], 0, 0, 0
    for feed in feeds:
        logits = slice(num_logits, num_logits := num_logits + len(feed.asked))
        hidden = slice(num_hidden, num_hidden := num_hidden + (len(feed.tokens) if feed.hidden else 0))
        inner = slice(num_inner, num_inner := num_inner + len(feed.asked) * len(feed.layers))
        found.append(
            Rows(
                rows.logits[logits],
                rows.hidden[hidden] if feed.hidden and rows.hidden is not None else None,
                rows.inner[inner] if feed.layers and rows.inner is not None else None,
            )
        )
    return found


def join_rows(parts: Sequence[Rows]) -> Rows:
    """Return the rows of all parts, in their order; at least one part."""
    hidden = [part.hidden for part in parts if part.hidden is not None]
    inner = [part.inner for part in parts if part.inner is not None]
    return Rows(
        torch.cat([part.logits for part in parts]),
        torch.cat(hidden) if hidden else None,
        torch.cat(inner) if inner else None,
    )

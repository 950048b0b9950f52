"""Hidden states of a request's tokens, and cosine similarities of the newest ones, for contrastive search.

Owns the stored hidden states, which follow the token tree. Knows no strategy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unspool.engine.branches import Node


class _Arena:
    """A growing buffer of rows that a sequence shares with its own prefixes. buffer: [capacity, width]"""

    def __init__(self, rows: torch.Tensor) -> None:
        self.buffer = rows
        self.used = len(rows)

    def append(self, row: torch.Tensor) -> None:
        if self.used == len(self.buffer):
            self.buffer = torch.cat([self.buffer, torch.empty_like(self.buffer)])
        self.buffer[self.used] = row
        self.used += 1


class _Context(NamedTuple):
    """The first `length` rows of an arena."""

    arena: _Arena
    length: int

    @property
    def rows(self) -> torch.Tensor:
        return self.arena.buffer[: self.length]

    def follow(self, row: torch.Tensor) -> _Context:
        arena = self.arena
        if arena.used != self.length:  # another branch has appended after this prefix
            arena = _Arena(self.rows.clone())
        arena.append(row)
        return _Context(arena, self.length + 1)


def _unit(hidden: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.normalize(hidden.float(), dim=-1)


class HiddenStates:
    """Hidden states of one request's prompt and output tokens, normalized to length 1.

    Args:
        root: the node of the prompt.
    """

    def __init__(self, root: Node) -> None:
        self._root = root

    def add_prompt(self, start: int, hidden: torch.Tensor) -> None:
        """Add the hidden states of prompt tokens from position `start` on, if not known yet. hidden: [tokens, width]"""
        known = 0 if self._root.hidden is None else len(self._root.hidden)
        if len(hidden) and start + len(hidden) > known:
            assert start <= known, "a part of the prompt is missing"
            rows = _unit(hidden[known - start :])
            self._root.hidden = rows if self._root.hidden is None else torch.cat([self._root.hidden, rows])

    def add(self, nodes: Sequence[Node], hidden: torch.Tensor) -> None:
        """Add the hidden states of nodes. hidden: [len(nodes), width]"""
        for node, row in zip(nodes, _unit(hidden), strict=True):
            node.hidden = row

    def similarities(self, tips: Sequence[Node]) -> list[float]:
        """Return each tip's largest cosine similarity to an earlier token, in [-1, 1]; one product per parent."""
        found: dict[int, float] = {}
        families: dict[int, list[Node]] = {}
        for tip in {id(tip): tip for tip in tips}.values():
            families.setdefault(id(tip.parent), []).append(tip)
        for family in families.values():
            parent = family[0].parent
            if parent is None:
                context, newest = self._state(self._root)[:-1], self._state(self._root)[-1:]
            else:
                context, newest = self._context(parent).rows, torch.stack([self._state(tip) for tip in family])
            values = (newest @ context.T).max(-1).values.clamp(-1.0, 1.0).tolist()
            found.update(zip(map(id, family), values, strict=True))
        return [found[id(tip)] for tip in tips]

    def _state(self, node: Node) -> torch.Tensor:
        assert node.hidden is not None, "a token's hidden state was not kept"
        return node.hidden

    def _context(self, node: Node) -> _Context:
        """Return the hidden states up to and with this node's."""
        missing: list[Node] = []
        while node.context is None and node.parent is not None:
            missing.append(node)
            node = node.parent
        if node.context is None:
            node.context = _Context(_Arena(self._state(node)), len(self._state(node)))
        context: _Context = node.context
        for node in reversed(missing):
            context = node.context = context.follow(self._state(node))
        return context

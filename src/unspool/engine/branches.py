"""One record per branch: its tokens, what is cached of it, and the state that follows it through forks.

tokens      [0, prompt) prompt | [prompt, total) output
runtime     [0, cached) in the runtime | [cached, total) pending
position p  stands for "what follows the first p tokens": its row of logits comes from feeding token p - 1
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from unspool.protocols import Criterion, Processor
from unspool.types import Distribution, Seq


class Node:
    """One output token in a tree that all branches of a request share; the root node stands for the whole prompt.

    `known`, `whole` and `alternatives` speak of the token that follows: what was replied about it.
    """

    __slots__ = ("alternatives", "known", "length", "parent", "token", "whole")

    def __init__(self, parent: Node | None, token: int) -> None:
        self.parent = parent
        self.token = token
        self.length: int = parent.length + 1 if parent else 0
        self.known: dict[int, tuple[float, float]] = {}
        self.whole: Distribution | None = None
        self.alternatives: tuple[tuple[int, float], ...] | None = None

    def follow(self, token: int) -> Node:
        """Return a new node behind this one; of a whole distribution only this token's figures are kept."""
        if self.whole is not None and token not in self.known:
            self.known[token] = (float(self.whole.logprobs[token]), float(self.whole.scores[token]))
        self.whole = None
        return Node(self, token)

    def at(self, length: int) -> Node:
        """Return the ancestor (or self) with this many output tokens."""
        node = self
        while node.length > length:
            assert node.parent is not None, "only the root has no parent"
            node = node.parent
        assert node.length == length, f"no node of length {length} on a path of {self.length}"
        return node

    def since(self, length: int) -> list[Node]:
        """Return the nodes behind the first `length` tokens, oldest first."""
        nodes: list[Node] = []
        node = self
        while node.length > length:
            nodes.append(node)
            assert node.parent is not None, "only the root has no parent"
            node = node.parent
        return nodes[::-1]

    def figures(self) -> tuple[float, float]:
        """Return (logprob, score) of this token as the engine replied them; NaN where nobody asked."""
        assert self.parent is not None, "the root node is no token"
        return self.parent.known.get(self.token, (float("nan"), float("nan")))


class RowRef(NamedTuple):
    """One row of a pass's logits, [vocab], without a copy."""

    source: torch.Tensor
    row: int


class Marks(NamedTuple):
    """The states of a request's processors and criteria at one length, in the request's order."""

    processors: tuple[Any, ...]
    criteria: tuple[Any, ...]

    def fork(self, processors: Sequence[Processor]) -> Marks:
        """Return marks that can be advanced apart from these."""
        forked = (p.fork(state) for p, state in zip(processors, self.processors, strict=True))
        return Marks(tuple(forked), self.criteria)

    def advance(self, processors: Sequence[Processor], criteria: Sequence[Criterion], token: int) -> Marks:
        """Return the marks after one more token; these are used up."""
        return Marks(
            tuple(p.advance(state, token) for p, state in zip(processors, self.processors, strict=True)),
            tuple(c.advance(state, token) for c, state in zip(criteria, self.criteria, strict=True)),
        )


@dataclass(slots=True)
class Branch:
    """A live (or given-up) branch of a request.

    tip: its newest output token in the request's tree. pending: tokens [cached, total), not yet in the runtime.
    marks: by length; always holds the newest length, and the lengths this turn asks about.
    rows: by position, the raw logits computed since the branch last grew.
    """

    number: int
    seq: Seq
    tip: Node
    prompt_len: int
    pending: list[int]
    marks: dict[int, Marks]
    cached: int = 0
    rows: dict[int, RowRef] = field(default_factory=dict)
    alive: bool = True

    @property
    def length(self) -> int:
        return self.tip.length

    @property
    def total(self) -> int:
        return self.prompt_len + self.tip.length

    def check(self) -> None:
        """Assert what must hold between steps."""
        assert self.cached + len(self.pending) == self.total, f"branch {self.number}: cached + pending != total"
        assert self.length in self.marks, f"branch {self.number}: no marks for its newest length"

"""Branches: one record per branch, with its tokens, its cached sequences, and the state that a fork copies.

A branch has one sequence per prompt (two under classifier-free guidance). All of them end with the branch's output
tokens, and the runtime caches each one separately.

tokens      [0, prompt) prompt | [prompt, total) output
runtime     [0, cached) in the KV cache | [cached, total) pending
length n    the position after the first n output tokens; feeding the token before it gives its row of logits. Lengths
            below 0 are positions in the prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from unspool.engine.prompt_rows import PromptRow
from unspool.protocols import Criterion, Processor, Runtime
from unspool.types import Ask, Distribution, Seq, Source


class Node:
    """One output token in the token tree that all branches of a request share. The root is the whole prompt.

    Three fields describe the next token. scored: (log-probability, score) of each replied candidate. distribution: the
    distribution, if one was replied. top_logprobs: the best tokens for the option `logprobs`.
    score: of the node's own token, if the strategy gave it; else None. `hidden` and `context` belong to
    engine/similarity.py.
    """

    __slots__ = ("top_logprobs", "context", "hidden", "scored", "length", "parent", "token", "score", "distribution")

    def __init__(self, parent: Node | None, token: int, score: float | None = None) -> None:
        self.parent = parent
        self.token = token
        self.score = score
        self.length: int = parent.length + 1 if parent else 0
        self.scored: dict[int, tuple[float, float]] = {}
        self.distribution: Distribution | None = None
        self.top_logprobs: tuple[tuple[int, float], ...] | None = None
        self.hidden: torch.Tensor | None = None
        self.context: Any = None

    def follow(self, token: int, score: float | None = None) -> Node:
        """Return a new child. Keeps only this token's figures of a whole distribution, to free its memory.

        score: of the token; None for the first that was replied.
        """
        if self.distribution is not None and token not in self.scored:
            self.scored[token] = (float(self.distribution.logprobs[token]), float(self.distribution.scores[token]))
        self.distribution = None
        return Node(self, token, score)

    def at(self, length: int) -> Node:
        """Return the ancestor (or self) with this many output tokens."""
        node = self
        while node.length > length:
            assert node.parent is not None, "only the root lacks a parent"
            node = node.parent
        assert node.length == length, f"no node of length {length} on a path of {self.length}"
        return node

    def since(self, length: int) -> list[Node]:
        """Return the nodes after the first `length` tokens, oldest first."""
        nodes: list[Node] = []
        node = self
        while node.length > length:
            nodes.append(node)
            assert node.parent is not None, "only the root lacks a parent"
            node = node.parent
        return nodes[::-1]

    def passes(self, node: Node) -> bool:
        """Return True if `node` is this node or one of its ancestors."""
        return self.length >= node.length and self.at(node.length) is node

    def figures(self) -> tuple[float, float]:
        """Return (logprob, score) of this token as the engine replied them; NaN if it was never a candidate."""
        assert self.parent is not None, "the root node is not a token"
        logprob, score = self.parent.scored.get(self.token, (float("nan"), float("nan")))
        return logprob, score if self.score is None else self.score


class RowRef(NamedTuple):
    """A view of one row of a pass's logits, [vocab]. inner: [layers, vocab], logits of inner layers; None without."""

    source: torch.Tensor
    row: int
    inner: torch.Tensor | None = None

    @property
    def logits(self) -> torch.Tensor:
        """The row. --> [vocab]"""
        return self.source[self.row]


class BranchState(NamedTuple):
    """The states of a request's processors and criteria at one length, in the request's order."""

    processors: tuple[Any, ...]
    criteria: tuple[Any, ...]

    def fork(self, processors: Sequence[Processor]) -> BranchState:
        """Return a copy that can be advanced independently."""
        if not processors:
            return self
        forked = [p.fork(state) for p, state in zip(processors, self.processors, strict=True)]
        return BranchState(tuple(forked), self.criteria)

    def advance(self, processors: Sequence[Processor], criteria: Sequence[Criterion], token: int) -> BranchState:
        """Return the states after one more token. This object must not be used afterwards."""
        if not processors and not criteria:
            return self
        return BranchState(
            tuple([p.advance(state, token) for p, state in zip(processors, self.processors, strict=True)]),
            tuple([c.advance(state, token) for c, state in zip(criteria, self.criteria, strict=True)]),
        )


@dataclass(slots=True)
class CachedSequence:
    """One sequence of a branch: a prompt, then the branch's output tokens, on one runtime.

    pending: tokens [cached, total), not in the KV cache yet. ahead: tokens from `total` on that are in the KV cache
    already, because the processors force them next; `rows` has their rows. rows: by length, of output positions,
    computed since the branch last grew. prompt_rows: answers about positions inside the prompt. source: input of the
    encoder, until the first feed has passed it on. prefix_checked: True if the prefix cache was asked, or cannot hold
    anything for this sequence. salt: as in `Feed`. num_matched: prompt tokens that prefix caching provided.
    """

    seq: Seq
    runtime: Runtime
    prompt: tuple[int, ...]
    pending: list[int]
    cached: int = 0
    rows: dict[int, RowRef] = field(default_factory=dict)
    prompt_rows: dict[int, dict[Ask, PromptRow]] = field(default_factory=dict)
    source: Source | None = None
    prefix_checked: bool = False
    ahead: tuple[int, ...] = ()
    salt: str = ""
    num_matched: int = 0

    @property
    def can_match_prefix(self) -> bool:
        """True if prefix caching applies: the runtime has it, and the K/V depend on the tokens alone."""
        return self.runtime.has_prefix_caching and self.source is None

    @property
    def has_prompt(self) -> bool:
        """True if the whole prompt is cached."""
        return self.cached >= len(self.prompt)

    def has_row(self, length: int) -> bool:
        """Return True if the row of this length was computed since the branch last grew."""
        return length in (self.rows if length >= 0 else self.prompt_rows)

    def forget_rows(self) -> None:
        """Forget all rows: the branch grows, so that they are not asked about again."""
        self.rows, self.prompt_rows = {}, {}

    def match_prefix(self, limit: int, *, least: int, invariant: bool) -> bool:
        """Reuse a cached prefix of `least` to `limit` tokens; returns False if the prefix cache lacks such a prefix."""
        found = self.runtime.match_prefix(
            self.seq, self.pending[:limit], least=least, invariant=invariant, salt=self.salt
        )
        assert found == 0 or least <= found <= limit, "the runtime matched more or fewer tokens than it was asked for"
        self.cached = self.num_matched = found
        del self.pending[: self.cached]
        return self.cached > 0

    def fork(self, seq: Seq) -> CachedSequence:
        """Return an independent copy with the same tokens."""
        if self.cached:
            self.runtime.fork(self.seq, seq)
        return CachedSequence(
            seq,
            self.runtime,
            self.prompt,
            list(self.pending),
            self.cached,
            dict(self.rows),
            dict(self.prompt_rows),
            self.source,
            prefix_checked=self.cached > 0,
            ahead=self.ahead,
            salt=self.salt,
        )

    def extend(self, tokens: Sequence[int], tip: Node) -> None:
        """Append output tokens. Tokens that were fed ahead are cached, and their rows stay.

        Args:
            tip: the branch's newest output token before these.
        """
        if self.ahead and self.ahead[: len(tokens)] == tuple(tokens):
            self.cached += len(tokens)
            self.ahead = self.ahead[len(tokens) :]
            rows = {length: row for length, row in self.rows.items() if length > tip.length}
            self.forget_rows()
            self.rows = rows
            return
        if self.ahead:
            self.keep(tip)
        self.forget_rows()
        self.pending.extend(tokens)

    def keep(self, tip: Node) -> None:
        """Shorten the sequence to the output tokens up to `tip`."""
        total = len(self.prompt) + tip.length
        if self.cached + len(self.ahead) > total:
            self.cached, self.ahead = self.runtime.truncate(self.seq, total), ()
        output = [node.token for node in tip.since(max(self.cached - len(self.prompt), 0))]
        self.pending = [*self.prompt[self.cached :], *output]
        self.rows = {length: row for length, row in self.rows.items() if length <= tip.length}

    def release(self) -> None:
        """Free its memory."""
        self.forget_rows()
        self.pending = []
        self.runtime.release(self.seq)


@dataclass(slots=True)
class Branch:
    """A live or dropped branch of a request.

    cached_seqs: its sequences; the first one starts with the request's own prompt. tip: its newest output token in the
    token tree. branch_states: by length, for the newest length, the lengths that this turn asks about, and `anchor`.
    States of other lengths are recomputed from those at `anchor`. drafts: True if it runs on the draft model.
    """

    number: int
    cached_seqs: tuple[CachedSequence, ...]
    tip: Node
    branch_states: dict[int, BranchState]
    drafts: bool = False
    anchor: int | None = None
    alive: bool = True

    @property
    def length(self) -> int:
        return self.tip.length

    @property
    def main(self) -> CachedSequence:
        """The sequence that starts with the request's own prompt."""
        return self.cached_seqs[0]

    @property
    def total(self) -> int:
        """Tokens of prompt and output."""
        return len(self.main.prompt) + self.tip.length

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        for cached_seq in self.cached_seqs:
            expected = len(cached_seq.prompt) + self.length
            assert cached_seq.cached + len(cached_seq.pending) == expected, (
                f"branch {self.number}: cached + pending != total"
            )
        assert self.length in self.branch_states, f"branch {self.number}: no state for its newest length"

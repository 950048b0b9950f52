"""The branches of a request, and the moves that a strategy makes with them. Knows neither asks nor logits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import torch

from unspool.engine.branches import Branch, BranchState, CachedSequence, Node
from unspool.engine.request import Request
from unspool.engine.similarity import HiddenStates
from unspool.errors import StrategyError
from unspool.protocols import Context, Processor, Runtime
from unspool.types import DRAFT, ROOT, Drop, Extend, Fork, Keep, Move, Seq

_ORDER: Mapping[type, int] = {Drop: 0, Keep: 1, Fork: 2, Extend: 3}
"""The order in which the moves of a turn are applied."""


class BranchTree:
    """All branches of a request by number, with dropped ones. Applies moves to them and to the runtime.

    Args:
        request: prompt and options.
        context: facts about the request.
        chain: the logits processors.
        start: the states of processors and criteria after the prompt.
        runtime: of the model. The draft model's runtime is `request.assistant`.
        new_seq: returns an unused sequence id.

    Attributes:
        branches: by number.
        root: the root of the token tree.
        hidden: hidden states for similarities; None if the strategy does not ask for them.
    """

    def __init__(
        self,
        request: Request,
        context: Context,
        *,
        chain: Sequence[Processor],
        start: BranchState,
        runtime: Runtime,
        new_seq: Callable[[], Seq],
    ) -> None:
        self._request, self._chain, self._start, self._new_seq = request, chain, start, new_seq
        self._max_new_tokens = context.max_new_tokens
        self._max_branches = request.strategy.max_branches(request.config)
        self.root = Node(None, -1)
        prompts = [request.prompt] if request.negative_prompt is None else [request.prompt, request.negative_prompt]
        self.branches: dict[int, Branch] = {ROOT: self._first(ROOT, runtime, prompts, self.root)}
        if request.assistant is not None:
            # A separate tree, because the draft model gives its tokens other log-probabilities than the model.
            self.branches[DRAFT] = self._first(DRAFT, request.assistant, [request.prompt], Node(None, -1))
        self.hidden = HiddenStates(self.root) if request.strategy.hidden_states else None
        self._live = dict(self.branches)

    def _first(self, number: int, runtime: Runtime, prompts: list[tuple[int, ...]], root: Node) -> Branch:
        """Return a branch without output tokens."""
        reads = runtime.info.needs_source or number == ROOT
        sources = (self._request.source, self._request.negative_source) if reads else (None, None)
        cached_seqs = tuple(
            CachedSequence(self._new_seq(), runtime, prompt, list(prompt), source=source, salt=self._request.cache_salt)
            for prompt, source in zip(prompts, sources, strict=False)
        )
        return Branch(number, cached_seqs, root, {0: self._start.fork(self._chain)}, drafts=number == DRAFT)

    @property
    def num_live(self) -> int:
        """Number of live branches, of the model and of the draft model."""
        return len(self._live)

    def live(self, number: int) -> Branch:
        """Return the live branch of this number.

        Raises:
            StrategyError: if it is unknown or was dropped.
        """
        branch = self._live.get(number)
        if branch is None:
            raise StrategyError(f"{self._request.strategy.name}: branch {number} is not alive")
        return branch

    def live_branches(self) -> Iterator[Branch]:
        return iter(self._live.values())

    def apply(self, moves: Sequence[Move], backs: Mapping[int, set[int]]) -> None:
        """Apply the moves of a turn in this order: drops, keeps, forks, extensions.

        Args:
            backs: branch --> the positions that the turn asks about, counted back from the newest token. Their states
                are kept.

        Raises:
            StrategyError: if a move is impossible.
        """
        for move in moves:
            if type(move) not in _ORDER:
                name = self._request.strategy.name
                raise StrategyError(f"{name}: a move must be Drop, Keep, Fork or Extend, got {move!r}")
        for move in sorted(moves, key=lambda move: _ORDER[type(move)]):
            if isinstance(move, Drop):
                self._drop(self.live(move.branch))
            elif isinstance(move, Keep):
                self._keep(self.live(move.branch), move.length)
            elif isinstance(move, Fork):
                self._fork(self.live(move.parent), move.child)
            else:
                self._extend(self.live(move.branch), move.tokens, backs.get(move.branch, ()), move.score)

    def _drop(self, branch: Branch) -> None:
        branch.alive = False
        branch.branch_states = {}
        self._live.pop(branch.number, None)
        for cached_seq in branch.cached_seqs:
            cached_seq.release()
        if self.hidden is not None and not any(each.tip.passes(branch.tip) for each in self.live_branches()):
            branch.tip.hidden = branch.tip.context = None

    def _keep(self, branch: Branch, length: int) -> None:
        if not 0 <= length <= branch.length:
            raise StrategyError(f"branch {branch.number} has {branch.length} tokens: it cannot keep {length}")
        branch.tip = branch.tip.at(length)
        for cached_seq in branch.cached_seqs:
            cached_seq.keep(branch.tip)
        if length not in branch.branch_states:
            branch.branch_states[length] = self._recomputed_state(branch)
            branch.anchor = length
        branch.branch_states = {length: branch.branch_states[length]}
        branch.anchor = length if branch.anchor is not None else None

    def _recomputed_state(self, branch: Branch) -> BranchState:
        """Return the state at the branch's tip, recomputed from an earlier length."""
        known = branch.anchor if branch.anchor in branch.branch_states and branch.anchor <= branch.length else None
        branch_states = (self._start if known is None else branch.branch_states[known]).fork(self._chain)
        for node in branch.tip.since(known or 0):
            branch_states = branch_states.advance(self._chain, self._request.criteria, node.token)
        return branch_states

    def _fork(self, parent: Branch, child: int) -> None:
        if child in self.branches:
            raise StrategyError(f"branch number {child} was used before")
        if sum(branch.drafts is parent.drafts for branch in self.live_branches()) >= self._max_branches:
            raise StrategyError(
                f"more than the {self._max_branches} branches that {self._request.strategy.name} declared"
            )
        branch = Branch(
            number=child,
            cached_seqs=(),
            tip=parent.tip,
            branch_states={
                length: branch_states.fork(self._chain) for length, branch_states in parent.branch_states.items()
            },
            drafts=parent.drafts,
            anchor=parent.anchor,
        )
        self.branches[child] = self._live[child] = branch
        for cached_seq in parent.cached_seqs:
            # Add them one by one, so that a failing fork still releases the earlier ones.
            branch.cached_seqs += (cached_seq.fork(self._new_seq()),)

    def _extend(
        self, branch: Branch, tokens: tuple[int, ...], backs: Iterable[int], score: float | None = None
    ) -> None:
        """Append tokens, and keep the state at every length that this turn asks about."""
        before = tip = branch.tip
        asked = {tip.length + len(tokens) - back for back in backs}
        if branch.anchor is not None:
            asked.add(branch.anchor)
        kept = {length: branch_states for length, branch_states in branch.branch_states.items() if length in asked}
        branch_states = branch.branch_states[tip.length]
        if tip.length in kept:
            branch_states = branch_states.fork(self._chain)
        vocab_size = branch.main.runtime.info.vocab_size
        last = tip.length + len(tokens)
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise StrategyError(f"branch {branch.number}: token {token} is outside the vocabulary")
            branch.tip = tip = tip.follow(token, score)
            branch_states = branch_states.advance(self._chain, self._request.criteria, token)
            if tip.length in asked and tip.length < last:
                kept[tip.length] = branch_states
                branch_states = branch_states.fork(self._chain)
        kept[last] = branch_states
        branch.branch_states = kept
        for cached_seq in branch.cached_seqs:
            cached_seq.extend(tokens, before)
        if branch.length > self._max_new_tokens:
            raise StrategyError(f"branch {branch.number} is longer than {self._max_new_tokens} tokens")

    def remember(self, branch: Branch, start: int, hidden: torch.Tensor) -> None:
        """Keep the hidden states of the main sequence from position `start` on. hidden: [tokens, width]"""
        assert self.hidden is not None, "hidden states were not requested"
        prompt_len = len(branch.main.prompt)
        in_prompt = min(max(prompt_len - start, 0), len(hidden))
        self.hidden.add_prompt(start, hidden[:in_prompt])
        nodes = branch.tip.since(max(start - prompt_len, 0))
        self.hidden.add(nodes[: len(hidden) - in_prompt], hidden[in_prompt:])

    def release(self) -> None:
        """Free every branch's memory."""
        for branch in list(self.live_branches()):
            with suppress(Exception):
                self._drop(branch)

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        for branch in self.live_branches():
            branch.check()
        for drafts in (False, True):
            count = sum(branch.drafts is drafts for branch in self.live_branches())
            assert count <= self._max_branches, "more branches than reserved"

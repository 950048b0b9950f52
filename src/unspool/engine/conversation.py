"""A running request: its strategy's generator, its branches, and its commit log.

Owns the branches, and applies the moves of a turn to them and to the runtime. Knows neither scheduling nor logits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from unspool.engine.branches import Branch, BranchState, CachedSequence, Node
from unspool.engine.commit_log import CommitLog
from unspool.engine.prompt_rows import PromptRow
from unspool.engine.request import Request, prompt_key_of
from unspool.engine.similarity import HiddenStates
from unspool.engine.trace.recorder import Recorder
from unspool.errors import StrategyError
from unspool.processors import DEFAULT_ORDER, PROCESSORS
from unspool.protocols import Context, Processor, Runtime
from unspool.types import (
    DRAFT,
    ROOT,
    Ask,
    Committed,
    Distribution,
    Drop,
    Extend,
    Finished,
    Fork,
    GumbelTopK,
    Hypothesis,
    Keep,
    Reply,
    Sample,
    Score,
    Seq,
    Similarity,
    Tentative,
    Top,
    Turn,
)


def processor_chain(request: Request, context: Context) -> tuple[list[Processor], list[object]]:
    """Return the logits processors that the request enables, in its order, and their states after the prompt."""
    chain: list[Processor] = []
    states: list[object] = []
    for name in request.config.processor_order or DEFAULT_ORDER:
        for processor in request.processors if name == "user" else (PROCESSORS[name],):
            state = processor.start(context)
            if state is not None:
                chain.append(processor)
                states.append(state)
    return chain, states


class Conversation:
    """A running request, driven by its strategy's generator.

    Args:
        number: of the request.
        request: prompt and options.
        context: facts about the request that its strategy and processors can use.
        runtime: of the model. The draft model's runtime is `request.assistant`.
        new_seq: returns an unused sequence id.

    Attributes:
        turn: the open turn. outcome: the returned hypotheses; None while it runs.
        branches: all branches by number, with dropped ones.
        forced_tokens: output tokens that must follow the branch of the open turn, fed in the same pass (fast-forward).
        passes: forward passes of the model so far.
        deadline: on the engine's clock, in seconds; None for no limit.
        empty_row_error: raised if the strategy returns no output because a row had no allowed token.
    """

    def __init__(
        self, number: int, request: Request, context: Context, runtime: Runtime, new_seq: Callable[[], Seq]
    ) -> None:
        self.number = number
        self.request = request
        self.context = context
        self.max_branches = request.strategy.max_branches(request.config)
        self.prompt_key = prompt_key_of(request)
        self.deadline: float | None = None
        self.passes = 0
        self.eos = frozenset(context.eos_token_ids)
        self._new_seq = new_seq
        self.chain, states = processor_chain(request, context)
        criteria = tuple(criterion.start(context) for criterion in request.criteria)
        self._start = BranchState(tuple(states), criteria)
        root = Node(None, -1)
        prompts = [request.prompt] if request.negative_prompt is None else [request.prompt, request.negative_prompt]
        self.branches: dict[int, Branch] = {ROOT: self._first(ROOT, runtime, prompts, root)}
        if request.assistant is not None:
            # A separate tree, because the draft model gives its tokens other log-probabilities than the model.
            self.branches[DRAFT] = self._first(DRAFT, request.assistant, [request.prompt], Node(None, -1))
        self.hidden = HiddenStates(root) if request.strategy.hidden_states else None
        self.recorder = Recorder(request.prompt, root) if request.trace else None
        self.turn = Turn()
        self.forced_tokens: tuple[int, ...] = ()
        self._backs: dict[int, set[int]] = {}
        self._prompt_asks: dict[tuple[int, int], list[Ask]] = {}
        self.outcome: list[Hypothesis] | None = None
        self.empty_row_error: Exception | None = None
        self._live = dict(self.branches)
        self._commit_log = CommitLog(number, self.branches, root)
        self._tail: tuple[int, ...] = ()
        self._was_committed = False
        self._last_reply: Reply = ()
        self._generator = request.strategy.run(context)

    def _first(self, number: int, runtime: Runtime, prompts: list[tuple[int, ...]], root: Node) -> Branch:
        """Return a branch without output tokens."""
        reads = runtime.info.needs_source or number == ROOT
        sources = (self.request.source, self.request.negative_source) if reads else (None, None)
        cached_seqs = tuple(
            CachedSequence(self._new_seq(), runtime, prompt, list(prompt), source=source, salt=self.request.cache_salt)
            for prompt, source in zip(prompts, sources, strict=False)
        )
        return Branch(number, cached_seqs, root, {0: self._start.fork(self.chain)}, drafts=number == DRAFT)

    # --- turns and replies --------------------------------------------------------------------------------------

    def begin(self) -> list[Committed | Tentative]:
        """Take the first turn; returns its events."""
        if not isinstance(self._generator, Generator):
            name = self.request.strategy.name
            raise StrategyError(f"{name}: `run` must be a generator, which yields Turns; got {self._generator!r}")
        return self._take_turn(lambda: next(self._generator))

    def reply(self, reply: Reply, cuts: tuple[Distribution | None, ...] = ()) -> list[Committed | Tentative]:
        """Answer the open turn and take the next one; returns its events. cuts: for the trace, one per ask."""
        self._last_reply = reply
        if self.recorder is not None:
            self.recorder.reply(self.turn, reply, cuts)
        return self._take_turn(lambda: self._generator.send(reply))

    def _take_turn(self, advance: Callable[[], Turn]) -> list[Committed | Tentative]:
        try:
            turn = advance()
        except StopIteration as stop:
            self.outcome = self._checked_outcome(stop.value)
            if not self.outcome and self.empty_row_error is not None:
                raise self.empty_row_error from None
            if self.recorder is not None:
                self.recorder.finish(self.outcome)
            return list(self._commit_log.commit_rest(self.outcome))
        name = self.request.strategy.name
        if not isinstance(turn, Turn):
            raise StrategyError(f"{name}: a strategy yields Turns, got {turn!r}")
        if not turn.asks:
            raise StrategyError(f"{name}: a Turn must ask something or the strategy must return")
        self.turn = turn
        self._backs, self._prompt_asks = {}, {}
        for ask in turn.asks:
            backs = self._backs.setdefault(ask.branch, set())
            if not isinstance(ask, Similarity):
                backs.add(ask.back)
        self._apply()
        if self.recorder is not None:
            self.recorder.turn(turn, self.branches)
        events: list[Committed | Tentative] = []
        for commit in turn.commits:
            event = self._commit_log.commit(commit)
            events += [event] if event else []
            if self.recorder is not None:
                self.recorder.commit(commit)
        self._check_asks()
        self.forced_tokens = self._forced_tokens()
        self._was_committed |= any(event.output == 0 for event in events)
        return events + self._tentative()

    def _tentative(self) -> list[Tentative]:
        """Return the leading branch's uncommitted tokens as a preview, if the request wants one and it has changed.

        A commit shortens the preview, so an equal tail after a commit is sent again.
        """
        leader = self.branches[self.turn.asks[0].branch]
        is_requery = not self.turn.moves
        if not self.request.tentative or leader.drafts or is_requery:
            return []
        if not self.request.strategy.shows_tentative:
            return []
        nodes = self._commit_log.beyond(0, leader.tip)
        tail = tuple(node.token for node in nodes or ())
        if tail == self._tail and not (tail and self._was_committed):
            return []
        self._tail, self._was_committed = tail, False
        return [Tentative(request=self.number, output=0, token_ids=tail)]

    def _checked_outcome(self, outcome: Any) -> list[Hypothesis]:
        """Return the strategy's result, or raise StrategyError if it is not a list of hypotheses."""
        if isinstance(outcome, list) and all(isinstance(each, Hypothesis) for each in outcome):
            return outcome
        raise StrategyError(f"{self.request.strategy.name}: a strategy returns a list of Hypotheses, got {outcome!r}")

    # --- moves --------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Apply the turn's moves in this order: drops, keeps, forks, extensions."""
        order = (Drop, Keep, Fork, Extend)
        for move in self.turn.moves:
            if type(move) not in order:
                name = self.request.strategy.name
                raise StrategyError(f"{name}: a move must be Drop, Keep, Fork or Extend, got {move!r}")
        for move in sorted(self.turn.moves, key=lambda move: order.index(type(move))):
            if isinstance(move, Drop):
                self._drop(self.live(move.branch))
            elif isinstance(move, Keep):
                self._keep(self.live(move.branch), move.length)
            elif isinstance(move, Fork):
                self._fork(self.live(move.parent), move.child)
            else:
                self._extend(self.live(move.branch), move.tokens)

    def live(self, number: int) -> Branch:
        """Return the live branch of this number.

        Raises:
            StrategyError: if it does not exist or was dropped.
        """
        branch = self._live.get(number)
        if branch is None:
            raise StrategyError(f"{self.request.strategy.name}: branch {number} is not alive")
        return branch

    def live_branches(self) -> Iterator[Branch]:
        return iter(self._live.values())

    def allows_empty_rows(self, branch: Branch) -> bool:
        """Return True if a row without an allowed token is answered with no candidate, instead of failing the request.

        This holds for searches with other branches, and for draft tokens, which are optional.
        """
        return branch.drafts or self.request.strategy.allows_empty_rows

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
        branch_states = (self._start if known is None else branch.branch_states[known]).fork(self.chain)
        for node in branch.tip.since(known or 0):
            branch_states = branch_states.advance(self.chain, self.request.criteria, node.token)
        return branch_states

    def _fork(self, parent: Branch, child: int) -> None:
        if child in self.branches:
            raise StrategyError(f"branch number {child} was used before")
        if sum(branch.drafts is parent.drafts for branch in self.live_branches()) >= self.max_branches:
            raise StrategyError(
                f"more than the {self.max_branches} branches that {self.request.strategy.name} declared"
            )
        branch = Branch(
            number=child,
            cached_seqs=(),
            tip=parent.tip,
            branch_states={
                length: branch_states.fork(self.chain) for length, branch_states in parent.branch_states.items()
            },
            drafts=parent.drafts,
            anchor=parent.anchor,
        )
        self.branches[child] = self._live[child] = branch
        for cached_seq in parent.cached_seqs:
            # Add them one by one, so that a failing fork still releases the earlier ones.
            branch.cached_seqs += (cached_seq.fork(self._new_seq()),)

    def _extend(self, branch: Branch, tokens: tuple[int, ...]) -> None:
        """Append tokens, and keep the state at every length that this turn asks about."""
        asked = {branch.length + len(tokens) - back for back in self._backs.get(branch.number, ())}
        asked |= set() if branch.anchor is None else {branch.anchor}
        kept = {length: branch_states for length, branch_states in branch.branch_states.items() if length in asked}
        branch_states = branch.branch_states[branch.length]
        if branch.length in kept:
            branch_states = branch_states.fork(self.chain)
        vocab_size = branch.main.runtime.info.vocab_size
        before = branch.tip
        for token in tokens:
            if not 0 <= token < vocab_size:
                raise StrategyError(f"branch {branch.number}: token {token} is outside the vocabulary")
            branch.tip = branch.tip.follow(token)
            branch_states = branch_states.advance(self.chain, self.request.criteria, token)
            if branch.length in asked:
                kept[branch.length] = branch_states
                branch_states = branch_states.fork(self.chain)
        kept[branch.length] = branch_states
        branch.branch_states = kept
        for cached_seq in branch.cached_seqs:
            cached_seq.extend(tokens, before)
        if branch.length > self.context.max_new_tokens:
            raise StrategyError(f"branch {branch.number} is longer than {self.context.max_new_tokens} tokens")

    # --- asks ---------------------------------------------------------------------------------------------------

    def _check_asks(self) -> None:
        """Raise StrategyError for asks that a forward pass cannot answer."""
        for ask in self.turn.asks:
            branch = self.live(ask.branch)
            if branch.drafts is not self.branches[self.turn.asks[0].branch].drafts:
                raise StrategyError(f"{ask}: a Turn asks about the model or about the draft model, not about both")
            length = branch.length - ask.back
            if ask.back < 0 or branch.total - ask.back < 1:
                raise StrategyError(f"{ask}: branch {branch.number} lacks that position")
            if isinstance(ask, Similarity):
                self._check_similarity(ask, branch)
                continue
            for cached_seq in branch.cached_seqs if length >= 0 else branch.cached_seqs[:1]:
                if len(cached_seq.prompt) + length <= cached_seq.cached and not cached_seq.has_row(length):
                    raise StrategyError(f"{ask}: that row was computed before the branch last grew and is gone")
            if length < 0:
                self._check_prompt_ask(ask, branch.main.prompt_rows.get(length))
                self._prompt_asks.setdefault((ask.branch, length), []).append(ask)
            if isinstance(ask, Top | GumbelTopK) and (not isinstance(ask.k, int) or ask.k < 1):
                raise StrategyError(f"{ask}: k must be at least 1")
            named = (*ask.taken_tokens, *(ask.tokens if isinstance(ask, Score) else ()))
            if not all(0 <= token < self.context.info.vocab_size for token in named):
                raise StrategyError(f"{ask}: a token is outside the vocabulary of {self.context.info.vocab_size}")
            if isinstance(ask, Sample | GumbelTopK) and ask.output < 0:
                raise StrategyError(f"{ask}: output must be at least 0")

    def _check_prompt_ask(self, ask: Ask, known: Mapping[Ask, PromptRow] | None) -> None:
        """Check an ask about a position inside the prompt. known: its answers, if the position is computed."""
        if not isinstance(ask, Score | Top):
            raise StrategyError(f"{ask}: only Score and Top can ask about positions inside the prompt")
        if known is not None and ask not in known:
            raise StrategyError(f"{ask}: ask about a position inside the prompt in one turn: its logits are not kept")

    def _check_similarity(self, ask: Similarity, branch: Branch) -> None:
        if self.hidden is None:
            raise StrategyError(f"{ask}: only a strategy with hidden_states = True can ask for a similarity")
        if branch.drafts or ask.back or branch.total < 2:
            raise StrategyError(f"{ask}: only the newest of at least two tokens on the model can be compared")

    def asked_branches(self) -> list[Branch]:
        """Return the branches that the open turn asks about, each once, in the order of its asks."""
        return [self.branches[number] for number in self._backs]

    def wanted(self, branch: Branch, cached_seq: CachedSequence) -> set[int]:
        """Return the lengths that the open turn asks about and that this sequence has not computed."""
        lengths = {branch.length - back for back in self._backs[branch.number]}
        if cached_seq is not branch.main:
            lengths = {length for length in lengths if length >= 0}  # only the main sequence scores the prompt
        return {length for length in lengths if not cached_seq.has_row(length)}

    def prompt_asks(self, branch: Branch, length: int) -> Sequence[Ask]:
        """Return the open turn's asks about a position inside the prompt."""
        return self._prompt_asks[branch.number, length]

    def _forced_tokens(self) -> tuple[int, ...]:
        """Return the output tokens that the processors force after the asked branch's newest token, for any logits.

        Empty if other branches are alive, because these would wait.
        """
        ask = self.turn.asks[0]
        takes_one = isinstance(ask, Sample) or (isinstance(ask, Top) and ask.k == 1)
        is_alone = len(self._live) == 1 and len(self.turn.asks) == 1 and self.request.lockstep_group is None
        branch = self.live(ask.branch)
        if not takes_one or not is_alone or ask.back or branch.drafts or self.hidden is not None:
            return ()
        if not branch.main.has_prompt or not branch.main.pending:
            return ()  # the prompt has a pass of its own, and tokens that were fed ahead need none
        most = self.context.max_new_tokens - branch.length - 1
        states = branch.branch_states[branch.length].processors
        found = (
            processor.forced_tokens(state, most)
            for processor, state in zip(self.chain, states, strict=True)
            if isinstance(processor, Processor)  # a user's processor can lack the base class
        )
        return next((tokens for tokens in found if tokens), ())

    def num_unread(self, branch: Branch, cached_seq: CachedSequence) -> int:
        """Return the number of leading tokens for which the open turn needs neither a row nor a hidden state."""
        if self.hidden is not None and cached_seq is branch.main and not branch.drafts:
            return 0
        # The row of a length comes from feeding the token before.
        return len(cached_seq.prompt) + min(self.wanted(branch, cached_seq)) - 1

    def lacks(self, branch: Branch, cached_seq: CachedSequence) -> bool:
        """Return True if this sequence needs a forward pass before the open turn can be answered."""
        if self.wanted(branch, cached_seq):
            return True
        # A similarity needs the hidden state of the newest token, even if it needs no row.
        return self.hidden is not None and bool(cached_seq.pending) and cached_seq is branch.main

    @property
    def is_ready(self) -> bool:
        """True if all rows that the open turn asks about are computed."""
        return not any(
            self.lacks(branch, cached_seq) for branch in self.asked_branches() for cached_seq in branch.cached_seqs
        )

    def remember(self, branch: Branch, start: int, hidden: torch.Tensor) -> None:
        """Keep the hidden states of the main sequence from position `start` on. hidden: [tokens, width]"""
        assert self.hidden is not None, "hidden states were not requested"
        prompt_len = len(branch.main.prompt)
        in_prompt = min(max(prompt_len - start, 0), len(hidden))
        self.hidden.add_prompt(start, hidden[:in_prompt])
        nodes = branch.tip.since(max(start - prompt_len, 0))
        self.hidden.add(nodes[: len(hidden) - in_prompt], hidden[in_prompt:])

    # --- outputs ------------------------------------------------------------------------------------------------

    def ending(self, branch_states: BranchState, length: int, token: int, late: bool) -> str | None:
        """Return the finish reason if a branch of this length ends with this token, or None."""
        if token in self.eos:
            return "eos"
        for criterion, state in zip(self.request.criteria, branch_states.criteria, strict=True):
            verdict: Any = criterion.ends(state, token)
            if verdict is not False and _is_true(verdict, criterion.name, length):
                return criterion.name
        if length + 1 >= self.context.max_new_tokens:
            return "length"
        return "time" if late else None

    def finished(self) -> Finished:
        """Return the `Finished` event, with the outputs in the order of the strategy."""
        assert self.outcome is not None, "only a finished request has an outcome"
        alternatives = self.request.config.logprobs is not None
        outputs = tuple(
            self._commit_log.output(hypothesis, with_alternatives=alternatives) for hypothesis in self.outcome
        )
        trace = self.recorder.trace() if self.recorder is not None else None
        return Finished(
            request=self.number,
            outputs=outputs,
            rows=self._last_reply,
            trace=trace,
            passes=self.passes,
            cached_tokens=self.branches[ROOT].main.num_matched,
        )

    def release(self) -> None:
        """Free every branch's memory and close the strategy's generator."""
        for branch in list(self.live_branches()):
            with suppress(Exception):
                self._drop(branch)
        # The request is over, so an error in the strategy's cleanup cannot be reported.
        with suppress(Exception):
            self._generator.close()

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        for branch in self.live_branches():
            branch.check()
        for drafts in (False, True):
            count = sum(branch.drafts is drafts for branch in self.live_branches())
            assert count <= self.max_branches, "more branches than reserved"


def _is_true(verdict: Any, name: str, length: int) -> bool:
    """Return a criterion's verdict as a bool.

    Raises:
        StrategyError: if it is not a bool, or a single boolean of NumPy or PyTorch.
    """
    if isinstance(verdict, bool | np.bool_) or (
        isinstance(verdict, torch.Tensor) and verdict.dtype == torch.bool and verdict.numel() == 1
    ):
        return bool(verdict)
    raise StrategyError(f"the criterion {name} must return True or False (new token {length + 1}), got {verdict!r}")

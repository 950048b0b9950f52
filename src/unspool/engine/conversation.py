"""One request under way: its strategy's conversation, its branches, and what has been committed.

Owns the branches and applies the moves of a Turn to them and to the runtime. Knows no scheduling and no vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from unspool.engine.branches import Branch, Marks, Node
from unspool.engine.ledger import Ledger
from unspool.engine.request import Request
from unspool.errors import StrategyError
from unspool.processors import DEFAULT_ORDER, PROCESSORS
from unspool.protocols import Context, Processor, Runtime
from unspool.types import (
    ROOT,
    Committed,
    Drop,
    Extend,
    Finished,
    Fork,
    Hypothesis,
    Keep,
    Perturbed,
    Reply,
    Sample,
    Score,
    Seq,
    Top,
    Turn,
)


def processor_chain(request: Request, context: Context) -> tuple[list[Processor], list[object]]:
    """Return the processors this request switches on, in its order, and their states after the prompt."""
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
    """The engine's side of one strategy's generator."""

    def __init__(self, number: int, request: Request, context: Context, new_seq: Callable[[], Seq]) -> None:
        self.number = number
        self.request = request
        self.context = context
        self.max_branches = request.strategy.max_branches(request.config)
        self.deadline: float | None = None
        self.eos = frozenset(context.eos_token_ids)
        self._new_seq = new_seq
        self.chain, states = processor_chain(request, context)
        criteria = tuple(criterion.start(context) for criterion in request.criteria)
        root = Branch(
            number=ROOT,
            seq=new_seq(),
            tip=Node(None, -1),
            prompt_len=len(request.prompt),
            pending=list(request.prompt),
            marks={0: Marks(tuple(states), criteria)},
        )
        self.branches: dict[int, Branch] = {ROOT: root}
        self.turn = Turn()
        self._backs: dict[int, set[int]] = {}
        self.outcome: list[Hypothesis] | None = None
        self._ledger = Ledger(number, self.branches, root.tip)
        self._last_reply: Reply = ()
        self._generator = request.strategy.run(context)

    # --- the exchange -------------------------------------------------------------------------------------------

    def begin(self, runtime: Runtime) -> list[Committed]:
        """Hear the first Turn."""
        return self._hear(lambda: next(self._generator), runtime)

    def reply(self, reply: Reply, runtime: Runtime) -> list[Committed]:
        """Answer the open Turn and hear the next one; returns what it commits."""
        self._last_reply = reply
        return self._hear(lambda: self._generator.send(reply), runtime)

    def _hear(self, advance: Callable[[], Turn], runtime: Runtime) -> list[Committed]:
        try:
            turn = advance()
        except StopIteration as stop:
            self.outcome = self._checked_outcome(stop.value)
            return self._ledger.commit_rest(self.outcome)
        name = self.request.strategy.name
        if not isinstance(turn, Turn):
            raise StrategyError(f"{name}: a strategy yields Turns, got {turn!r}")
        if not turn.asks:
            raise StrategyError(f"{name}: a Turn must ask something or the strategy must return")
        self.turn = turn
        self._backs = {}
        for ask in turn.asks:
            self._backs.setdefault(ask.branch, set()).add(ask.back)
        self._apply(runtime)
        events = [self._ledger.commit(commit) for commit in turn.commits]
        self._check_asks()
        return [event for event in events if event]

    def _checked_outcome(self, outcome: Any) -> list[Hypothesis]:
        """Return what the strategy returned, if it is what a strategy returns."""
        if isinstance(outcome, list) and all(isinstance(each, Hypothesis) for each in outcome):
            return outcome
        raise StrategyError(f"{self.request.strategy.name}: a strategy returns a list of Hypotheses, got {outcome!r}")

    # --- moves --------------------------------------------------------------------------------------------------

    def _apply(self, runtime: Runtime) -> None:
        """Apply the Turn's moves as a whole: drops, then keeps, forks, extensions."""
        order = (Drop, Keep, Fork, Extend)
        for move in self.turn.moves:
            if type(move) not in order:
                raise StrategyError(f"{self.request.strategy.name}: {move!r} is no move")
        for move in sorted(self.turn.moves, key=lambda move: order.index(type(move))):
            if isinstance(move, Drop):
                self._drop(self.live(move.branch), runtime)
            elif isinstance(move, Keep):
                self._keep(self.live(move.branch), move.length, runtime)
            elif isinstance(move, Fork):
                self._fork(self.live(move.parent), move.child, runtime)
            else:
                self._extend(self.live(move.branch), move.tokens)

    def live(self, number: int) -> Branch:
        """Return the live branch of this number, or tell the strategy that there is none."""
        branch = self.branches.get(number)
        if branch is None or not branch.alive:
            raise StrategyError(f"{self.request.strategy.name}: branch {number} is not alive")
        return branch

    def live_branches(self) -> Iterator[Branch]:
        return (branch for branch in self.branches.values() if branch.alive)

    def _drop(self, branch: Branch, runtime: Runtime) -> None:
        runtime.release(branch.seq)
        branch.alive = False
        branch.rows, branch.marks, branch.pending = {}, {}, []

    def _keep(self, branch: Branch, length: int, runtime: Runtime) -> None:
        if not 0 <= length <= branch.length:
            raise StrategyError(f"branch {branch.number} has {branch.length} tokens: it cannot keep {length}")
        branch.tip = branch.tip.at(length)
        if branch.cached > branch.total:
            branch.cached = runtime.truncate(branch.seq, branch.total)
        branch.pending = self.tokens(branch)[branch.cached :]
        branch.rows = {position: row for position, row in branch.rows.items() if position <= branch.total}
        branch.marks = {length: branch.marks.get(length) or self._marks_from_start(branch)}

    def _fork(self, parent: Branch, child: int, runtime: Runtime) -> None:
        if child in self.branches:
            raise StrategyError(f"branch number {child} was used before")
        if sum(1 for _ in self.live_branches()) >= self.max_branches:
            raise StrategyError(
                f"more than the {self.max_branches} branches that {self.request.strategy.name} declared"
            )
        seq = self._new_seq()
        if parent.cached:
            runtime.fork(parent.seq, seq)
        self.branches[child] = Branch(
            number=child,
            seq=seq,
            tip=parent.tip,
            prompt_len=parent.prompt_len,
            pending=list(parent.pending),
            marks={length: marks.fork(self.chain) for length, marks in parent.marks.items()},
            cached=parent.cached,
            rows=dict(parent.rows),
        )

    def _extend(self, branch: Branch, tokens: tuple[int, ...]) -> None:
        """Append tokens, keeping a copy of the marks at every length this Turn asks about."""
        asked = {branch.length + len(tokens) - back for back in self._backs.get(branch.number, ())}
        kept = {length: marks for length, marks in branch.marks.items() if length in asked}
        marks = branch.marks[branch.length]
        if branch.length in kept:
            marks = marks.fork(self.chain)
        for token in tokens:
            if not 0 <= token < self.context.info.vocab_size:
                raise StrategyError(f"branch {branch.number}: token {token} is outside the vocabulary")
            branch.tip = branch.tip.follow(token)
            marks = marks.advance(self.chain, self.request.criteria, token)
            if branch.length in asked:
                kept[branch.length] = marks
                marks = marks.fork(self.chain)
        kept[branch.length] = marks
        branch.marks = kept
        branch.rows = {}
        branch.pending.extend(tokens)
        if branch.length > self.context.max_new_tokens:
            raise StrategyError(f"branch {branch.number} is longer than {self.context.max_new_tokens} tokens")

    def _marks_from_start(self, branch: Branch) -> Marks:
        _, states = processor_chain(self.request, self.context)
        marks = Marks(tuple(states), tuple(criterion.start(self.context) for criterion in self.request.criteria))
        for node in branch.tip.since(0):
            marks = marks.advance(self.chain, self.request.criteria, node.token)
        return marks

    def tokens(self, branch: Branch) -> list[int]:
        """Return all tokens of a branch, prompt first."""
        return [*self.request.prompt, *(node.token for node in branch.tip.since(0))]

    # --- asks ---------------------------------------------------------------------------------------------------

    def position(self, branch: Branch, back: int) -> int:
        return branch.total - back

    def _check_asks(self) -> None:
        """Refuse asks that no forward could answer."""
        for ask in self.turn.asks:
            branch = self.live(ask.branch)
            position = self.position(branch, ask.back)
            if ask.back < 0 or position < 1:
                raise StrategyError(f"{ask}: there is no such position in branch {branch.number}")
            if position <= branch.cached and position not in branch.rows:
                raise StrategyError(f"{ask}: that row was computed before the branch last grew and is gone")
            if position < branch.prompt_len and not isinstance(ask, Score):
                raise StrategyError(f"{ask}: positions inside the prompt can only be scored")
            if isinstance(ask, Top | Perturbed) and (not isinstance(ask.k, int) or ask.k < 1):
                raise StrategyError(f"{ask}: k must be at least 1")
            if isinstance(ask, Score) and not all(0 <= token < self.context.info.vocab_size for token in ask.tokens):
                raise StrategyError(f"{ask}: a token is outside the vocabulary of {self.context.info.vocab_size}")
            if isinstance(ask, Sample | Perturbed) and ask.output < 0:
                raise StrategyError(f"{ask}: output must be at least 0")

    def asked_branches(self) -> list[Branch]:
        """Return the branches the open Turn asks about, each once, in the order of its asks."""
        return [self.branches[number] for number in self._backs]

    def wanted(self, branch: Branch) -> set[int]:
        """Return the positions of this branch that the open Turn asks about and that no row answers yet."""
        return {branch.total - back for back in self._backs[branch.number]} - branch.rows.keys()

    # --- what comes out -----------------------------------------------------------------------------------------

    def ending(self, marks: Marks, length: int, token: int, late: bool) -> str | None:
        """Return why a branch of this length would end with this token, or None."""
        if token in self.eos:
            return "eos"
        for criterion, state in zip(self.request.criteria, marks.criteria, strict=True):
            if criterion.ends(state, token):
                return criterion.name
        if length + 1 >= self.context.max_new_tokens:
            return "length"
        return "time" if late else None

    def finished(self) -> Finished:
        """Return the outputs of a conversation that is over."""
        assert self.outcome is not None, "only a finished conversation has an outcome"
        alternatives = self.request.config.logprobs is not None
        outputs = tuple(self._ledger.output(hypothesis, with_alternatives=alternatives) for hypothesis in self.outcome)
        return Finished(request=self.number, outputs=outputs, rows=self._last_reply)

    def release(self, runtime: Runtime) -> None:
        """Give every branch's memory back and close the strategy."""
        for branch in list(self.live_branches()):
            self._drop(branch, runtime)
        # The request is over, so a strategy that raises while it cleans up has nobody left to tell.
        with suppress(Exception):
            self._generator.close()

    def check(self) -> None:
        """Assert what must hold between steps."""
        for branch in self.live_branches():
            branch.check()
        assert sum(1 for _ in self.live_branches()) <= self.max_branches, "more branches than reserved"

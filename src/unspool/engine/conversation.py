"""A running request: its strategy's generator, its branches, and its commit log.

Knows neither scheduling nor logits.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from unspool.engine.branch_tree import BranchTree
from unspool.engine.branches import Branch, BranchState
from unspool.engine.commit_log import CommitLog
from unspool.engine.open_turn import OpenTurn
from unspool.engine.request import Request, prompt_key_of
from unspool.engine.trace.recorder import Recorder
from unspool.errors import StrategyError
from unspool.processors import DEFAULT_ORDER, PROCESSORS
from unspool.protocols import Context, Criterion, Processor, Runtime
from unspool.types import ROOT, Committed, Distribution, Finished, Hypothesis, Reply, Seq, Tentative, Turn


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
        turn: of the strategy. open_turn: its asks. outcome: the returned hypotheses; None while it runs.
        tree: the branches. branches: all of them by number, with dropped ones. hidden: as in `BranchTree`.
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
        self.prompt_key = prompt_key_of(request)
        self.deadline: float | None = None
        self.passes = 0
        self.eos = frozenset(context.eos_token_ids)
        self.chain, states = processor_chain(request, context)
        criteria = tuple(criterion.start(context) for criterion in request.criteria)
        self.tree = BranchTree(
            request,
            context,
            chain=self.chain,
            start=BranchState(tuple(states), criteria),
            runtime=runtime,
            new_seq=new_seq,
        )
        self.branches, self.hidden = self.tree.branches, self.tree.hidden
        self.recorder = Recorder(request.prompt, self.tree.root) if request.trace else None
        self.turn = Turn()
        self.open_turn = OpenTurn(self.turn, self.tree, request, context)
        self.forced_tokens: tuple[int, ...] = ()
        self.outcome: list[Hypothesis] | None = None
        self.empty_row_error: Exception | None = None
        self._commit_log = CommitLog(number, self.branches, self.tree.root)
        self._tail: tuple[int, ...] = ()
        self._was_committed = False
        self._last_reply: Reply = ()
        self._generator = request.strategy.run(context)

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
        self.open_turn = OpenTurn(turn, self.tree, self.request, self.context)
        self.tree.apply(turn.moves, self.open_turn.backs)
        if self.recorder is not None:
            self.recorder.turn(turn, self.branches)
        events: list[Committed | Tentative] = []
        for commit in turn.commits:
            event = self._commit_log.commit(commit)
            if event is not None:
                events.append(event)
                self._was_committed |= commit.output == 0
            if self.recorder is not None:
                self.recorder.commit(commit)
        self.open_turn.check()
        self.forced_tokens = self.open_turn.forced_tokens(self.chain)
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

    def allows_empty_rows(self, branch: Branch) -> bool:
        """Return True if a row without an allowed token is answered with no candidate, instead of failing the request.

        This holds for searches with other branches, and for draft tokens, which are optional.
        """
        return branch.drafts or self.request.strategy.allows_empty_rows

    # --- outputs ------------------------------------------------------------------------------------------------

    def endings(self, branch_states: BranchState, length: int, tokens: Iterable[int], late: bool) -> list[str | None]:
        """Return, for each token, the finish reason if a branch of this length ends with it, or None."""
        further = "length" if length + 1 >= self.context.max_new_tokens else "time" if late else None
        criteria = list(zip(self.request.criteria, branch_states.criteria, strict=True))
        return ["eos" if token in self.eos else _met(criteria, token, length) or further for token in tokens]

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
        self.tree.release()
        # The request is over, so an error in the strategy's cleanup cannot be reported.
        with suppress(Exception):
            self._generator.close()

    def check(self) -> None:
        """Assert the invariants that hold between steps."""
        self.tree.check()


def _met(criteria: Iterable[tuple[Criterion, Any]], token: int, length: int) -> str | None:
    """Return the name of the first criterion that ends a branch of this length with this token, or None."""
    for criterion, state in criteria:
        verdict: Any = criterion.ends(state, token)
        if verdict is not False and _is_true(verdict, criterion.name, length):
            return criterion.name
    return None


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

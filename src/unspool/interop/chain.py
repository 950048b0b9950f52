"""All processors of a call as one processor, so that objects of transformers can run among ours.

Owns: the chain, and the rows of its last application. Does not know: strategies, and the call's results.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from unspool.engine.logits import RowContext, processed, support_of
from unspool.interop.batch_layout import BatchLayout, TokenPath
from unspool.interop.record import Record
from unspool.processors import PROCESSORS
from unspool.protocols import Context, Conversation, Processor, RowKey, Strategy, WrappedStrategy
from unspool.types import Extend, Fork, Hypothesis, Keep, Reply, Space, Turn


class ChainState(NamedTuple):
    """The state of a row: its path, and its processors with their states."""

    path: TokenPath
    chain: tuple[Processor, ...]
    states: tuple[Any, ...]


class ProcessorChain(Processor):
    """One chain of processors for all requests of a call. It also records logits and scores.

    It serves strategies in the "logits" space (see InLogits). If the strategy needs log-probabilities, the chain
    computes them itself, so that raw logits can be recorded.

    Args:
        layout: of the call.
        record: stores rows for the caller.
        stages: name of a stage --> processors that replace our own, or are added.
        order: names of all stages, first to last.
        log_probs: True if processors get log-probabilities, False for logits.
    """

    name = "the processors"

    def __init__(
        self,
        layout: BatchLayout,
        record: Record,
        stages: Mapping[str, Sequence[Processor]],
        *,
        order: tuple[str, ...],
        log_probs: bool,
    ) -> None:
        self._layout, self._record, self._stages = layout, record, stages
        self._order, self._log_probs = order, log_probs
        self._scores = torch.empty(0, dtype=torch.float32, device="cpu")
        self._rows: dict[TokenPath, int] = {}

    def start(self, context: Context) -> ChainState:
        """Return the state after the prompt of the next request."""
        path = self._layout.begin()
        pairs = []
        for name in self._order:
            own = (PROCESSORS[name],) if name in PROCESSORS else ()
            started = ((each, each.start(context)) for each in self._stages.get(name, own))
            pairs += [(each, state) for each, state in started if state is not None]
        return ChainState(path, tuple(each for each, _ in pairs), tuple(state for _, state in pairs))

    def advance(self, state: ChainState, token: int) -> ChainState:
        """Return the state after one more token."""
        states = (each.advance(one, token) for each, one in zip(state.chain, state.states, strict=True))
        return ChainState(state.path.follow(token), state.chain, tuple(states))

    def fork(self, state: ChainState) -> ChainState:
        """Return a copy of the state that can change independently."""
        states = (each.fork(one) for each, one in zip(state.chain, state.states, strict=True))
        return state._replace(states=tuple(states))

    def apply(self, states: Sequence[ChainState], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores after all processors. scores: [rows, vocab] logits"""
        paths = [state.path for state in states]
        self._layout.arrange_rows(paths, keys)
        jobs = [
            RowContext(state.chain, state.states, self._order, self._log_probs, key)
            for state, key in zip(states, keys, strict=True)
        ]
        self._record.keep("logits", paths, keys, scores)
        self._scores = processed(scores, jobs)
        self._record.keep("scores", paths, keys, self._scores)
        self._rows = {path: row for row, path in enumerate(paths)}
        return self._scores

    def support(self, state: ChainState, vocab_size: int) -> torch.Tensor | None:
        """Return the tokens that all processors allow, as far as this does not depend on scores. --> [vocab] bool"""
        return support_of(state.chain, state.states, vocab_size)

    def values(self, pairs: Sequence[tuple[TokenPath, int]]) -> list[float]:
        """Return the scores of (path, token) pairs in the last application. Each path must have exactly one row."""
        rows, tokens = [self._rows[path] for path, _ in pairs], [token for _, token in pairs]
        values: list[float] = self._scores[rows, tokens].tolist()
        return values


class InLogits(WrappedStrategy):
    """Wraps a strategy: its rows reach the chain as logits, and the layout learns which outputs end.

    Args:
        strategy: decodes.
        layout: of the call.
    """

    def __init__(self, strategy: Strategy, layout: BatchLayout) -> None:
        super().__init__(strategy)
        self.space: Space = "logits"
        self._layout = layout

    def run(self, context: Context) -> Conversation:
        """Run the wrapped strategy's conversation."""
        return _watched(self.inner.run(context), self._layout, self._layout.newest)


def _watched(
    conversation: Conversation, layout: BatchLayout, root: TokenPath
) -> Generator[Turn, Reply, list[Hypothesis]]:
    """Run a conversation, and give the layout each output when it ends."""
    paths: dict[int, TokenPath] = {}
    try:
        turn = next(conversation)
        while True:
            _follow(turn, paths, root)
            for commit in turn.commits:
                if commit.finished is not None:
                    _end(commit.output, commit.finished, paths, layout, root)
            turn = conversation.send((yield turn))
    except StopIteration as stop:
        outcome: list[Hypothesis] = stop.value
    finally:
        conversation.close()
    for output, hypothesis in enumerate(outcome):
        _end(output, hypothesis, paths, layout, root)
    return outcome


def _follow(turn: Turn, paths: dict[int, TokenPath], root: TokenPath) -> None:
    """Apply a Turn's moves to the paths of its branches in the engine's order: keeps, forks, extensions."""
    for move in turn.moves:
        if isinstance(move, Keep):
            paths[move.branch] = paths.get(move.branch, root).at(move.length)
    for move in turn.moves:
        if isinstance(move, Fork):
            paths[move.child] = paths.get(move.parent, root)
    for move in turn.moves:
        if isinstance(move, Extend):
            path = paths.get(move.branch, root)
            for token in move.tokens:
                path = path.follow(token)
            paths[move.branch] = path


def _end(output: int, finished: Hypothesis, paths: dict[int, TokenPath], layout: BatchLayout, root: TokenPath) -> None:
    path = paths.get(finished.branch, root).at(finished.length)
    layout.end(output, path if finished.last is None else path.follow(finished.last.token))

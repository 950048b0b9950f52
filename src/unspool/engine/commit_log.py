"""The commit log of a request: final tokens of each output, and finished outputs.

Owns how far each output is committed. Reads branches, but never changes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unspool.engine.branches import Branch, Node
from unspool.errors import StrategyError
from unspool.types import Commit, Committed, Hypothesis, Output


class _Progress(NamedTuple):
    """How far an output has been committed."""

    node: Node
    finished: bool = False


class CommitLog:
    """The commits of one request.

    Args:
        number: of the request.
        branches: of the request, with dropped ones. Never changed here.
        root: the node of the prompt.
    """

    def __init__(self, number: int, branches: Mapping[int, Branch], root: Node) -> None:
        self._number = number
        self._branches = branches
        self._root = root
        self._progress: dict[int, _Progress] = {}

    def commit(self, commit: Commit) -> Committed | None:
        """Return the event with the tokens that the commit adds to its output, or None if it adds nothing.

        Raises:
            StrategyError: if the output was already finished, or if committed tokens have changed.
        """
        before = self._progress.get(commit.output, _Progress(self._root))
        if before.finished:
            raise StrategyError(f"output {commit.output} was already finished")
        branch = self._branch(commit.branch, commit.length)
        if commit.length == before.node.length and not commit.finished:
            return None  # a check would walk back over all uncommitted tokens
        node = branch.tip.at(commit.length)
        if not _goes_on(node, before.node):
            raise StrategyError(f"output {commit.output}: tokens that were committed have changed")
        self._progress[commit.output] = _Progress(node, commit.finished is not None)
        nodes = node.since(before.node.length)
        token_ids = [each.token for each in nodes]
        logprobs = [each.figures()[0] for each in nodes]
        alternatives = [each.parent.top_logprobs if each.parent else None for each in nodes]
        last = commit.finished.last if commit.finished else None
        if last is not None:
            token_ids.append(last.token)
            logprobs.append(last.logprob)
            alternatives.append(node.top_logprobs)
        if not token_ids and not commit.finished:
            return None
        return Committed(
            request=self._number,
            output=commit.output,
            token_ids=tuple(token_ids),
            logprobs=tuple(logprobs),
            finish_reason=finish_reason(commit.finished) if commit.finished else None,
            top_logprobs=tuple([each or () for each in alternatives]) if any(alternatives) else None,
        )

    def beyond(self, output: int, tip: Node) -> list[Node] | None:
        """Return the nodes after the committed tokens of an output, up to `tip`.

        None if the output is finished, or if `tip` does not continue the committed tokens.
        """
        node, finished = self._progress.get(output, _Progress(self._root))
        return tip.since(node.length) if not finished and _goes_on(tip, node) else None

    def _node(self, branch: int, length: int) -> Node:
        return self._branch(branch, length).tip.at(length)

    def _branch(self, branch: int, length: int) -> Branch:
        found = self._branches.get(branch)
        if found is None or not 0 <= length <= found.length:
            has = "does not exist" if found is None else f"has {found.length} tokens"
            raise StrategyError(f"branch {branch} {has}, so its first {length} cannot be handed over")
        return found

    def commit_rest(self, outcome: Sequence[Hypothesis]) -> list[Committed]:
        """Commit the outputs that the strategy returned, as far as they are not committed yet."""
        events = []
        for output, hypothesis in enumerate(outcome):
            if not self._progress.get(output, _Progress(self._root)).finished:
                events.append(self.commit(Commit(output, hypothesis.branch, hypothesis.length, hypothesis)))
        return [event for event in events if event]

    def output(self, hypothesis: Hypothesis, *, with_alternatives: bool) -> Output:
        """Return a finished sequence with its log-probabilities and scores."""
        tip = self._node(hypothesis.branch, hypothesis.length)
        nodes = tip.since(0)
        tokens = [node.token for node in nodes]
        figures = [node.figures() for node in nodes]
        alternatives = [node.parent.top_logprobs or () for node in nodes if node.parent]
        if hypothesis.last is not None:
            tokens.append(hypothesis.last.token)
            figures.append((hypothesis.last.logprob, hypothesis.last.score))
            alternatives.append(tip.top_logprobs or ())
        return Output(
            token_ids=tuple(tokens),
            logprobs=tuple(logprob for logprob, _ in figures),
            scores=tuple(score for _, score in figures),
            score=hypothesis.score,
            finish_reason=finish_reason(hypothesis),
            top_logprobs=tuple(alternatives) if with_alternatives else None,
            unmet=hypothesis.unmet,
        )


def _goes_on(node: Node, committed: Node) -> bool:
    """Return True if a path begins with the committed tokens. Two branches can hold equal tokens on separate nodes."""
    if node.passes(committed):
        return True
    if node.length < committed.length:
        return False
    path, promised = node.at(committed.length).since(0), committed.since(0)
    return all(one.token == other.token for one, other in zip(path, promised, strict=True))


def finish_reason(hypothesis: Hypothesis) -> str:
    """Return why a hypothesis ended; "strategy" if the strategy itself ended it."""
    return (hypothesis.last.ends if hypothesis.last else None) or "strategy"

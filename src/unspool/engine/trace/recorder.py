"""The trace recorder: builds the search tree of a request from its turns and replies, invisibly to the strategy.

Owns the tree of all tried tokens, with the time and reason of every drop. Reads branches, but never changes them.
Knows no text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from unspool.engine.branches import Branch, Node
from unspool.engine.commit_log import finish_reason
from unspool.engine.trace.rows import Children, RowStats, TraceRowSource, finite
from unspool.records import Recording, TraceCommit, TraceMove, TraceNode, TraceOutput, TraceStep
from unspool.types import (
    DRAFT,
    Candidate,
    Commit,
    Distribution,
    Drop,
    Extend,
    Fork,
    Hypothesis,
    Keep,
    Move,
    Reply,
    Turn,
)

NUM_BEST = 5


@dataclass(slots=True)
class _Entry:
    """A node of the trace under construction.

    holders: number of live branches that end here, plus children with holders. logprob, score: for an ending token,
    which is not in the engine's token tree; None for other tokens.
    """

    id: int
    parent: int | None
    node: Node | None
    token: int | None
    step: int
    branch: int
    draft: bool
    holders: int = 0
    logprob: float | None = None
    score: float | None = None
    ends: str | None = None
    committed: int | None = None
    dropped_at: int | None = None
    why: str | None = None
    outputs: list[int] = field(default_factory=list)

    @property
    def figures(self) -> tuple[float | None, float | None]:
        """(logprob, score) of the token. Final only at the end, because draft tokens get theirs later."""
        return self.node.figures() if self.node and self.node.parent else (self.logprob, self.score)


@dataclass(slots=True)
class _Step:
    """A turn, its commits, and the rows of its reply."""

    turn: Turn
    rows: list[TraceRowSource] = field(default_factory=list)
    commits: list[TraceCommit] = field(default_factory=list)


class Recorder:
    """Records the trace of one request.

    Args:
        prompt: token ids of the request.
        root: the node of the prompt.
        num_best: how many of the model's best tokens to keep per distribution.
    """

    def __init__(self, prompt: Sequence[int], root: Node, *, num_best: int = NUM_BEST) -> None:
        self._prompt = tuple(prompt)
        self._root = root
        self._num_best = num_best
        self._branches: Mapping[int, Branch] = {}
        self._drafts: set[int] = set()
        self._tips: dict[int, int] = {}
        self._entries: list[_Entry] = []
        self._ids: dict[Node, int] = {}
        self._endings: dict[tuple[int, int], int] = {}
        self._steps: list[_Step] = []
        self._outputs: list[TraceOutput] = []
        self._processors: tuple[str, ...] = ()
        self._add(root, None, branch=0, step=0)

    # --- events of the conversation -----------------------------------------------------------------------------

    def turn(self, turn: Turn, branches: Mapping[int, Branch]) -> None:
        """Record a turn after its moves were applied. branches: all branches, with dropped ones."""
        self._branches = branches
        self._steps.append(_Step(turn))
        for move in turn.moves:
            if isinstance(move, Fork) and self._is_draft(move.parent):
                self._drafts.add(move.child)
        touched = self._touched(turn)
        dropped = [number for number in touched if not branches[number].alive]
        self._end_unreturned(dropped, self._steps[-2:-1], len(self._steps) - 1)
        released = [(number, self._tips.pop(number)) for number in touched if number in self._tips]
        for number in touched:
            if branches[number].alive:
                self._hold(branches[number])
        # Release old tips last; otherwise the forks of a dropped branch would look dropped too.
        for number, tip in released:
            lost = "taken back" if branches[number].alive else "beaten"
            self._release(tip, turn.note or lost)

    def reply(self, turn: Turn, rows: Reply, cuts: Sequence[Distribution | None]) -> None:
        """Record the reply to that turn. cuts: each row's distribution; None in the prompt and for `Similarity`."""
        step = self._steps[-1]
        for ask, row, cut in zip(turn.asks, rows, cuts, strict=True):
            branch = self._branches[ask.branch]
            length = branch.length - ask.back
            entry = self._ids[branch.tip.at(length)] if length >= 0 else None
            view = None if cut is None else RowStats.of(cut, row.log_norm, self._num_best)
            draft = self._is_draft(ask.branch)
            if cut is not None and not draft:
                self._processors = cut.processors
            step.rows.append(TraceRowSource(ask, row._replace(distribution=None), entry, length, draft, view))

    def commit(self, commit: Commit) -> None:
        """Record a commit of the open turn."""
        now = len(self._steps) - 1
        finished = commit.finished
        self._steps[-1].commits.append(
            TraceCommit(output=commit.output, branch=commit.branch, length=commit.length, finished=finished is not None)
        )
        end = self._path_end(commit.branch, commit.length)
        if finished is not None:
            end = self._ending(finished, step=now)
        for entry in self._upwards(end):
            if entry.committed is not None:
                break
            entry.committed = now

    def finish(self, outcome: Sequence[Hypothesis]) -> None:
        """Record the result of the strategy."""
        now = len(self._steps)
        for index, hypothesis in enumerate(outcome):
            end = self._ending(hypothesis, step=now)
            path = list(self._upwards(end))
            for entry in path:
                entry.outputs.append(index)
            ids = tuple(entry.id for entry in reversed(path) if entry.token is not None)
            self._outputs.append(
                TraceOutput(
                    nodes=ids,
                    logprob=_total(entry.figures[0] for entry in path if entry.token is not None),
                    score=finite(hypothesis.score),
                    finish_reason=finish_reason(hypothesis),
                    unmet=hypothesis.unmet,
                )
            )
        self._end_unreturned(self._tips, self._steps[-1:], now)

    def trace(self, first_step: int = 0) -> Recording:
        """Return the recording so far: all nodes, and the steps from `first_step` on."""
        nodes = tuple(self._node(entry) for entry in self._entries)
        children = Children(nodes)
        return Recording(
            prompt=self._prompt,
            processors=self._processors,
            nodes=nodes,
            steps=tuple(
                _step(index, step, children) for index, step in enumerate(self._steps[first_step:], first_step)
            ),
            outputs=tuple(self._outputs),
        )

    # --- the tree -----------------------------------------------------------------------------------------------

    def _is_draft(self, branch: int) -> bool:
        return branch <= DRAFT or branch in self._drafts

    def _touched(self, turn: Turn) -> list[int]:
        """Return the branches that a turn changes, with growing ones first; the first turn adds all others."""
        grown = [move.branch for move in turn.moves if isinstance(move, Extend)]
        moved = [move.child if isinstance(move, Fork) else move.branch for move in turn.moves]
        new = self._branches if len(self._steps) == 1 else ()
        return list(dict.fromkeys([*grown, *moved, *new]))

    def _add(self, node: Node, parent: int | None, *, branch: int, step: int) -> int:
        token = None if parent is None else node.token
        entry = _Entry(len(self._entries), parent, node, token, step, branch, self._is_draft(branch))
        self._entries.append(entry)
        self._ids[node] = entry.id
        return entry.id

    def _hold(self, branch: Branch) -> None:
        """Add the branch's new nodes, and hold its newest one."""
        unknown: list[Node] = []
        node: Node | None = branch.tip
        while node is not None and node not in self._ids:
            unknown.append(node)
            node = node.parent
        parent = None if node is None else self._ids[node]
        for each in reversed(unknown):
            if parent is not None:
                self._entries[parent].holders += 1
            parent = self._add(each, parent, branch=branch.number, step=len(self._steps) - 1)
        tip = self._ids[branch.tip]
        self._entries[tip].holders += 1
        self._tips[branch.number] = tip

    def _release(self, tip: int, why: str) -> None:
        """Release a node. Marks it and its ancestors as dropped, up to the first one with other holders."""
        for entry in self._upwards(tip):
            entry.holders -= 1
            if entry.holders:
                break
            entry.dropped_at, entry.why = len(self._steps) - 1, why

    def _upwards(self, id: int) -> Iterator[_Entry]:
        """Yield a node, its parent, and so on to the prompt."""
        at: int | None = id
        while at is not None:
            yield self._entries[at]
            at = self._entries[at].parent

    def _path_end(self, branch: int, length: int) -> int:
        # A strategy can return before its first turn; its outputs then end at the root.
        found = self._branches.get(branch)
        return self._ids[(self._root if found is None else found.tip).at(length)]

    def _ending(self, hypothesis: Hypothesis, *, step: int) -> int:
        """Return the last node of a finished sequence, and add it if it is new."""
        branch, last = hypothesis.branch, hypothesis.last
        end = self._path_end(branch, hypothesis.length)
        if last is not None:
            end = self._written(hypothesis, last) or self._add_ending(end, last, branch=branch, step=step)
        self._entries[end].ends = finish_reason(hypothesis)
        return end

    def _written(self, hypothesis: Hypothesis, last: Candidate) -> int | None:
        """Return the node of the ending token if the branch already has it, for example as a draft token; else None."""
        branch, length = self._branches.get(hypothesis.branch), hypothesis.length + 1
        if branch is None or branch.length < length:
            return None
        node = branch.tip.at(length)
        return self._ids[node] if node.token == last.token else None

    def _add_ending(self, parent: int, last: Candidate, *, branch: int, step: int) -> int:
        """Return the node of an ending token that no branch holds, and add it if it is new."""
        key = (parent, last.token)
        if key not in self._endings:
            entry = _Entry(len(self._entries), parent, None, last.token, step, branch, self._is_draft(branch))
            entry.logprob, entry.score, entry.ends = last.logprob, last.score, last.ends
            self._entries.append(entry)
            self._endings[key] = entry.id
        return self._endings[key]

    def _end_unreturned(self, numbers: Iterable[int], steps: Sequence[_Step], now: int) -> None:
        """Add the ending tokens of dropped branches that had one ending token as their only candidate.

        Branches with several asks are verified drafts, in which only the first differing token counts. Skip those.

        Args:
            numbers: the dropped branches.
            steps: the step with the reply that contains the candidate; empty for none.
            now: the step at which the branches ended.
        """
        replied = [each for step in steps for each in step.rows if not each.draft]
        asked = Counter(each.ask.branch for each in replied)
        only = {each.ask.branch: each for each in replied if each.only and asked[each.ask.branch] == 1}
        for number in numbers:
            each = only.get(number)
            if each is not None and each.only is not None and each.only.ends and each.node is not None:
                self._add_ending(each.node, each.only, branch=number, step=now)

    def _node(self, entry: _Entry) -> TraceNode:
        figures = entry.figures
        dropped = not entry.outputs and entry.dropped_at is not None
        return TraceNode(
            id=entry.id,
            parent=entry.parent,
            token=entry.token,
            logprob=finite(figures[0]),
            score=finite(figures[1]),
            ends=entry.ends,
            state="output" if entry.outputs else "dropped" if dropped else "live" if entry.node else "finished",
            step=entry.step,
            branch=entry.branch,
            draft=entry.draft,
            committed=entry.committed,
            dropped_at=entry.dropped_at if dropped else None,
            why=entry.why if dropped else None,
            outputs=tuple(entry.outputs),
        )


def _step(index: int, step: _Step, children: Children) -> TraceStep:
    taken: Counter[int] = Counter()
    return TraceStep(
        index=index,
        moves=tuple(_move(move) for move in step.turn.moves),
        commits=tuple(step.commits),
        note=step.turn.note,
        rows=tuple(row.read(children, taken) for row in step.rows),
    )


def _move(move: Move) -> TraceMove:
    if isinstance(move, Drop):
        return TraceMove(kind="drop", branch=move.branch)
    if isinstance(move, Keep):
        return TraceMove(kind="keep", branch=move.branch, length=move.length)
    if isinstance(move, Fork):
        return TraceMove(kind="fork", branch=move.child, parent=move.parent)
    assert isinstance(move, Extend), f"{move!r} is not a move"
    return TraceMove(kind="extend", branch=move.branch, tokens=move.tokens)


def _total(logprobs: Iterable[float | None]) -> float | None:
    """Return the sum, or None if it is not finite or one of them is unknown."""
    return finite(math.fsum(math.nan if each is None else each for each in logprobs))

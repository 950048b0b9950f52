"""Tracing records: the plain values that a trace is made of, for display and JSON.

Does not import other modules of unspool. The engine leaves all texts empty; unspool.results.trace fills them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

NodeState: TypeAlias = Literal["output", "finished", "dropped", "live"]
AskKind: TypeAlias = Literal["top", "sample", "perturbed", "score", "similarity", "whole"]
MoveKind: TypeAlias = Literal["drop", "keep", "fork", "extend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceNode:
    """One token in the tree of all tokens that the strategy tried.

    id: its index among the nodes; parents come before children. Node 0 is the prompt. The prompt of a draft model has
        its own node.
    parent: the id of the token before it; None for a prompt.
    token, text: None and "" for a prompt.
    logprob: the model's own natural-log probability; the draft model's if `draft` is True.
    score: after the processors, in the strategy's space. None, like `logprob`, if not asked or minus infinity.
    ends: the reason why this token ended a sequence; None if it did not.
    state: "output": part of a returned output. "finished": ended a sequence that is not returned. "dropped": removed by
        the strategy. "live": on a live branch at the end, but not returned.
    step: the step with the moves that made it; the number of steps if it came with the returned hypotheses.
    branch: the branch that made it.
    draft: True if the branch is on the draft model.
    committed: the step that committed it; None if it was returned at the end without a commit, or not returned.
    dropped_at, why: the step that removed it, and the reason: the strategy's note, else "beaten" (its branch was
        dropped) or "taken back" (its branch was truncated). None unless `state` is "dropped".
    outputs: the indices of the outputs that contain it.
    """

    id: int
    parent: int | None
    token: int | None
    text: str = ""
    logprob: float | None
    score: float | None
    ends: str | None
    state: NodeState
    step: int
    branch: int
    draft: bool
    committed: int | None
    dropped_at: int | None
    why: str | None
    outputs: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCandidate:
    """A candidate token in a reply to the strategy.

    logprob, probability: the model's own, before any processor; None and 0.0 if it is impossible.
    score: after the processors, in the strategy's space; None if it is forbidden.
    processed_probability: the probability after the processors.
    perturbed: score plus noise; None if noise was not drawn.
    ends: the reason why this token would end a sequence; None if it would not.
    chosen: True if a branch of the same model continued with it here.
    node: the id of the node it became; None if it was not chosen.
    """

    token: int
    text: str = ""
    logprob: float | None
    probability: float
    score: float | None
    processed_probability: float
    perturbed: float | None
    ends: str | None
    chosen: bool
    node: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceToken:
    """One of the model's own most probable tokens. cut_by: the processor that forbade it, or None."""

    token: int
    text: str = ""
    logprob: float | None
    probability: float
    processed_probability: float
    cut_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCut:
    """The number of tokens in the vocabulary that a processor forbade."""

    processor: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """One question of the strategy about a position, and the reply.

    kind: the kind of the ask.
    branch, back: the position is `back` tokens before the branch's newest token.
    draft: True if the branch is on the draft model.
    node: the node before the asked token; for "similarity", the node itself. None inside the prompt.
    length: number of output tokens before that position; negative inside the prompt.
    candidates: in the order of the reply.
    log_norm: logsumexp of all scores; None for "similarity".
    entropy: entropy of the model's own distribution, in nats.
    num_allowed: number of tokens that all processors allow.
    cuts: the processors that forbade tokens, in order.
    best: the model's own best tokens, best first, allowed or not. For positions inside the prompt and for "similarity",
        `entropy` and `num_allowed` are None, and `cuts` and `best` are empty.
    similarity: the greatest cosine of the node's hidden state to those before it; None except for "similarity".
    """

    kind: AskKind
    branch: int
    back: int
    draft: bool
    node: int | None
    length: int
    candidates: tuple[TraceCandidate, ...]
    log_norm: float | None
    entropy: float | None
    num_allowed: int | None
    cuts: tuple[TraceCut, ...]
    best: tuple[TraceToken, ...]
    similarity: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceMove:
    """One move. parent: of "fork". length: of "keep". tokens, texts: of "extend". words: the move as a sentence."""

    kind: MoveKind
    branch: int
    parent: int | None = None
    length: int | None = None
    tokens: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCommit:
    """A commit: the first `length` tokens of the branch are final in the output. finished: True if it is complete."""

    output: int
    branch: int
    length: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStep:
    """One turn of the strategy and the reply to it.

    moves, commits: in the strategy's order.
    note: the strategy's remark, or None.
    rows: one per ask, in order; for beam searches this is the order of rank.
    """

    index: int
    moves: tuple[TraceMove, ...]
    commits: tuple[TraceCommit, ...]
    note: str | None
    rows: tuple[TraceRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOutput:
    """One returned output.

    nodes: ids of its tokens, first to last.
    logprob: sum of the model's own natural-log probabilities of its tokens; None if not finite.
    score: the value by which the strategy ranks it; None if not finite.
    unmet: text about the constraints that it does not meet; None if it meets all.
    """

    nodes: tuple[int, ...]
    logprob: float | None
    score: float | None
    finish_reason: str
    unmet: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """The complete recording of a request. prompt: its token ids. processors: names of the active ones, in order."""

    prompt: tuple[int, ...]
    processors: tuple[str, ...]
    nodes: tuple[TraceNode, ...]
    steps: tuple[TraceStep, ...]
    outputs: tuple[TraceOutput, ...]

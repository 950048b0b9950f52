"""What is recorded of a traced request: plain values, from which a Trace is made, drawn and written as JSON.

Imports nothing of ours. The engine leaves every text empty: it knows none (see unspool.results.trace).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

NodeState: TypeAlias = Literal["output", "finished", "dropped", "live"]
AskKind: TypeAlias = Literal["top", "sample", "perturbed", "score", "similarity", "whole"]
MoveKind: TypeAlias = Literal["drop", "keep", "fork", "extend"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceNode:
    """One token in the tree of everything that was tried.

    id: its index among the nodes; parents come before children. Node 0 is the prompt; where there is a draft model,
        its prompt is a node of its own. parent: None for those two.
    token, text: None and "" for a prompt.
    logprob: the model's own natural-log probability (the draft model's, where `draft`); score: after the processors, in
        the strategy's space. None where nobody asked, or minus infinity.
    ends: why a sequence ended with this token; None where none did.
    state: "output" belongs to a returned output; "finished" ended a sequence that is not returned; "dropped" was given
        up; "live" was held until the end for nothing.
    step: the step whose moves made it; the number of steps, where it came with what the strategy returned.
    branch: the branch that made it. draft: whether that is on the draft model.
    committed: the step that promised it, None where it was handed over with the end, or not at all.
    dropped_at, why: the step that gave it up, and the reason: the strategy's own words, else "beaten" (its branch was
        dropped) or "taken back" (its branch was shortened). None where `state` is not "dropped".
    outputs: the indices of the outputs that hold it.
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
    """A token that a reply offered to the strategy.

    logprob, probability: the model's own, before any processor; None and 0.0 where it is impossible.
    score: after the processors, in the strategy's space; None where it is forbidden. processed_probability: the
        probability it has after the processors.
    perturbed: score plus noise, where noise was drawn. ends: why a sequence would end with it.
    chosen: whether a branch of the same model went on with it here; node: the node it became then.
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
    """One of the tokens that the model itself finds most probable. cut_by: the processor that forbade it, or None."""

    token: int
    text: str = ""
    logprob: float | None
    probability: float
    processed_probability: float
    cut_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCut:
    """How many tokens of the vocabulary a processor forbade."""

    processor: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceRow:
    """What the strategy asked about one position, and what it heard.

    kind: of the ask. branch: that was asked about, `back` tokens before its newest one. draft: whether it is on the
        draft model.
    node: the node whose next token this is about; of "similarity", the node it is about. None inside the prompt.
    length: output tokens before that position; negative inside the prompt.
    candidates: in the order replied. log_norm: logsumexp of all scores; None for "similarity".
    entropy: of the model's own distribution, in nats. num_allowed: tokens that no processor forbade. cuts: those that
        forbade any, in order. best: the model's own best tokens, best first, allowed or not. None, None and empty for
        positions inside the prompt and "similarity".
    similarity: the greatest cosine of the node's hidden state to those before it, for "similarity" alone.
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
    """One move. parent: of "fork". length: of "keep". tokens, texts: of "extend". words: the same as a sentence."""

    kind: MoveKind
    branch: int
    parent: int | None = None
    length: int | None = None
    tokens: tuple[int, ...] = ()
    texts: tuple[str, ...] = ()
    words: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceCommit:
    """The promise that the first `length` tokens of a branch stay in an output; finished: and that it is complete."""

    output: int
    branch: int
    length: int
    finished: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStep:
    """One turn of the strategy and the reply to it.

    moves: in the strategy's order. commits: what it promised. note: its own remark.
    rows: one an ask, in order, which for beams is their rank.
    """

    index: int
    moves: tuple[TraceMove, ...]
    commits: tuple[TraceCommit, ...]
    note: str | None
    rows: tuple[TraceRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceOutput:
    """One returned output.

    nodes: ids of its tokens, first to last. logprob: sum of the model's own natural-log probabilities of these; score:
        the value that the strategy ranks by. None if not finite. unmet: what it lacks of what was demanded.
    """

    nodes: tuple[int, ...]
    logprob: float | None
    score: float | None
    finish_reason: str
    unmet: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """All that was recorded of a request. prompt: its token ids. processors: those in force, in order."""

    prompt: tuple[int, ...]
    processors: tuple[str, ...]
    nodes: tuple[TraceNode, ...]
    steps: tuple[TraceStep, ...]
    outputs: tuple[TraceOutput, ...]

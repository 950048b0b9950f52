"""Core data types: the messages between strategy and engine, model inputs and outputs, and the events of a request.

Plain values: only `Source`, `Rows` and `Distribution` contain tensors. Does not import other modules of unspool.

A *branch* is one partial output of a request. A strategy numbers its own branches. Branch `ROOT` exists from the start
and contains only the prompt. If the request has a draft model, branch `DRAFT` contains the prompt on the draft model,
and its forks stay there. The *length* of a branch counts its output tokens, so the root's length is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias
from warnings import warn

if TYPE_CHECKING:
    import torch

    from unspool.records import Recording

ROOT = 0
DRAFT = -1

Space: TypeAlias = Literal["logits", "log_probs"]
Seq: TypeAlias = int


class Candidate(NamedTuple):
    """One possible next token of a branch.

    score: after the processors, in the strategy's space, not renormalized.
    logprob: the model's own natural-log probability, before any processor.
    ends: None, or the reason why this token would end the sequence: "eos", "stop", "length", "time" or a criterion's
        name.
    """

    token: int
    score: float
    logprob: float
    ends: str | None


class Drop(NamedTuple):
    """Remove the branch; its number is never used again."""

    branch: int


class Keep(NamedTuple):
    """Truncate the branch to its first `length` output tokens."""

    branch: int
    length: int


class Fork(NamedTuple):
    """Copy `parent` to the new branch `child`, before this turn's extensions."""

    parent: int
    child: int


class Extend(NamedTuple):
    """Append the tokens to the branch.

    score: of a single token, if asks with different `taken_tokens` gave it different scores; None for the first one.
    """

    branch: int
    tokens: tuple[int, ...]
    score: float | None = None


Move: TypeAlias = Drop | Keep | Fork | Extend


@dataclass(frozen=True, slots=True)
class Ask:
    """A question about the next-token distribution at the position `back` tokens before the branch's newest token.

    back=0 asks for the token after the newest one. Only `Score` and `Top` can ask about positions inside the prompt,
    and only before the branch is extended. The reply then has the model's own log-probabilities, because processors
    apply to output positions only. All asks about such a position belong in one turn: its logits are not kept.

    taken_tokens: tokens that other branches chose for this position, once per choice; the diversity processor makes
        them less likely.
    """

    branch: int
    back: int = field(default=0, kw_only=True)
    taken_tokens: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Top(Ask):
    """Ask for the k best tokens, best first; ties go to the lowest token id. Fewer if fewer are allowed."""

    k: int


@dataclass(frozen=True, slots=True)
class Sample(Ask):
    """Ask for one sample from softmax(scores), under the request's noise for this output index."""

    output: int = 0


@dataclass(frozen=True, slots=True)
class GumbelTopK(Ask):
    """Ask for k samples without replacement, in the order drawn: the k largest of score + Gumbel noise.

    `Row.perturbed` has these sums. With a branch's accumulated score added, rows become comparable: the largest k over
    all rows are samples without replacement from the joint distribution.

    lane: the beam rank; it separates the noise of branches at the same position.
    Source: Kool et al. 2019, Stochastic Beams and Where to Find Them, section 2.3.
    """

    k: int
    lane: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class Score(Ask):
    """Ask for the given tokens, in the given order. ranks: True for `Row.ranks`, too."""

    tokens: tuple[int, ...]
    ranks: bool = False


@dataclass(frozen=True, slots=True)
class Similarity(Ask):
    """Ask for the greatest cosine of the newest token's hidden state to those before it (`Row.similarity`).

    The hidden states are the inputs of the model's head, of prompt and output. Only strategies with
    `hidden_states = True` can ask, about a branch with at least two tokens, and with back=0.
    Source: Su et al. 2022, A Contrastive Framework for Neural Text Generation, section 3.2.
    """


@dataclass(frozen=True, slots=True)
class FullDistribution(Ask):
    """Ask for the whole `Distribution`, for tracing and for custom strategies."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The exact distribution at one position, before and after the processors, and the processor that cut each token.

    Each tensor has the shape [vocab], on the CPU.

    logprobs: float64, the model's own log-probabilities.
    scores: float64, after the processors, which work in float32.
    cut_by: per token, the index into `processors` of the processor that set it to -inf; -1 if the token is allowed.
    """

    logprobs: torch.Tensor
    scores: torch.Tensor
    cut_by: torch.Tensor
    processors: tuple[str, ...]

    def forbidden_by(self, token: int) -> str | None:
        """Return the name of the processor that forbade this token, or None if it is allowed."""
        index = int(self.cut_by[token])
        return None if index < 0 else self.processors[index]


class Row(NamedTuple):
    """The answer to one Ask.

    log_norm: logsumexp of the row's scores over the vocabulary, so score - log_norm is a log-probability.
    perturbed: for `GumbelTopK`, score + noise of each candidate; else empty.
    similarity: for `Similarity`, in [-1, 1]; its candidates are empty, and its log_norm is NaN. Else None.
    ranks: for `Score` with `ranks`, the rank of each token among all tokens by the model's logits; 1 is the best, and
        ties go to the lowest token id. Else empty.
    """

    candidates: tuple[Candidate, ...]
    log_norm: float
    perturbed: tuple[float, ...] = ()
    distribution: Distribution | None = None
    similarity: float | None = None
    ranks: tuple[int, ...] = ()


Reply: TypeAlias = tuple[Row, ...]
"""One Row per Ask of the Turn, in the same order."""


class Hypothesis(NamedTuple):
    """A sequence: the first `length` output tokens of a branch (dropped or not), then `last` unless it is None.

    unmet: text about the request's constraints that the sequence does not meet, and the cause; None if it meets all.
    """

    branch: int
    length: int
    last: Candidate | None
    score: float
    unmet: str | None = None


class Commit(NamedTuple):
    """Declare the first `length` tokens of the branch final in output `output`; `finished` completes the output."""

    output: int
    branch: int
    length: int
    finished: Hypothesis | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a strategy: the engine applies all moves (drops, keeps, forks, extensions), then answers the asks.

    All other branches wait. A Turn without moves asks again about positions that are already computed.
    """

    moves: tuple[Move, ...] = ()
    asks: tuple[Ask, ...] = ()
    commits: tuple[Commit, ...] = ()
    note: str | None = None


class PromptInputs(dict[str, Any]):
    """The inputs of a batch of prompts, by name. It equals itself only, because a runtime reads each object once."""

    __slots__ = ("__weakref__",)
    __hash__ = object.__hash__  # type: ignore[assignment]
    __eq__ = object.__eq__
    __ne__ = object.__ne__


@dataclass(frozen=True, slots=True, kw_only=True, eq=False, weakref_slot=True)
class Source:
    """The inputs of a request beside its prompt's token ids: for an encoder, or embeddings, images and audio.

    inputs: for an encoder its arguments by name, tensors with a batch dimension of 1 (`input_ids`, `input_features`,
        `pixel_values`, their `attention_mask`); or only `encoder_outputs`, the encoder's last hidden state. For a
        decoder the arguments of its own `generate` by name (`input_ids`, `inputs_embeds`, `pixel_values`, ...), with
        `attention_mask`. Requests of one batch share a `PromptInputs`, and `row` tells them apart.
    token_ids: the known token ids of the text: of an encoder's input, or of a decoder's prompt. Processors read them.
        Can be empty.
    row: of the request in `inputs`.
    """

    inputs: Mapping[str, Any]
    token_ids: tuple[int, ...] = ()
    row: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Tokens to append to one cached sequence, and the positions that need logits.

    asked: indices into `tokens` of the positions that need logits, ascending.
    hidden: True to return the hidden states of all tokens.
    layers: inner layers that also need logits at the asked positions. Layer n is the hidden state after n layers,
        0 <= n < `ModelInfo.num_layers`; layer 0 is the embedding.
    invariant: True for batch-invariant rows: they must not depend on other feeds in the pass, or on the division of the
        sequence into feeds.
    source: input beside the tokens, only in a sequence's first feed. For a decoder this feed is the whole prompt.
    salt: part of the identity of cached prefixes; a sequence keeps the salt of its first feed, also in its forks.
        Sequences with different salts share no cached tokens.
    """

    seq: Seq
    tokens: Sequence[int]
    asked: tuple[int, ...]
    hidden: bool = False
    layers: tuple[int, ...] = ()
    invariant: bool = False
    source: Source | None = None
    salt: str = ""


class Rows(NamedTuple):
    """The result of a forward pass, feed by feed in the given order.

    logits: [asked rows, vocab] float32.
    hidden: [tokens of the feeds with `hidden`, width], the inputs of the model's head; None if all feeds are without.
    inner: [asked rows x layers of the feeds with `layers`, vocab] float32, with the layers of one asked row adjacent.
        The model's head computes them without its final normalization. None if all feeds are without.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    inner: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """The properties of a model that the engine needs.

    vocab_size: number of token ids.
    max_length: most tokens in one sequence, including the prompt; None for no limit.
    max_sequences, max_tokens: most live sequences, and most cached tokens over all of them; a request that needs more
        is refused. None for no limit.
    soft_max_sequences, soft_max_tokens: the same limits, but a request that needs more runs alone. None for no limit.
    bytes_per_token: bytes of the KV cache per token, over all layers; 0 without a KV cache, None if the model manages
        its own cache.
    needs_source: True if a request must have an encoder input.
    takes_source: True if a decoder's prompt can have embeddings, images or audio.
    batch_invariant: True if the runtime supports `Feed.invariant`.
    batch_invariance_obstacle: the reason if it is not supported, and a way out; else "".
    hidden_states: True if the runtime supports `Feed.hidden`.
    num_layers: number of layers that `Feed.layers` can name; None if the runtime cannot read inner layers.
    reads_whole: True if a prompt of any length must be fed in one forward pass. In several passes its parts would be
        computed twice, or differ from transformers' `generate`.
    tied_head: True if the head shares the weights of the embedding.
    backend: name of the implementation that runs the model, and the reason for this choice, as text.
    """

    name: str
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    bos_token_id: int | None = None
    pad_token_id: int | None = None
    max_length: int | None = None
    max_sequences: int | None = None
    max_tokens: int | None = None
    soft_max_sequences: int | None = None
    soft_max_tokens: int | None = None
    bytes_per_token: int | None = None
    needs_source: bool = False
    takes_source: bool = False
    batch_invariant: bool = False
    batch_invariance_obstacle: str = ""
    hidden_states: bool = False
    num_layers: int | None = None
    reads_whole: bool = False
    tied_head: bool = False
    backend: str = ""

    @property
    def path(self) -> str:
        """Deprecated: the old name of `backend`."""
        _warn_of_path(stacklevel=3)
        return self.backend


def _warn_of_path(*, stacklevel: int) -> None:
    warn("`path` of ModelInfo is deprecated; use `backend`", DeprecationWarning, stacklevel=stacklevel)


def _with_deprecated_path(init: Callable[..., None]) -> Callable[..., None]:
    """Return the constructor `init` of ModelInfo, which also accepts `path` for `backend`."""

    @wraps(init)
    def __init__(self: ModelInfo, **values: Any) -> None:
        if "path" in values:
            _warn_of_path(stacklevel=3)
            values["backend"] = values.pop("path")
        init(self, **values)

    return __init__


# `path` is accepted for one release. `replace(info, path=...)` ends here as well.
ModelInfo.__init__ = _with_deprecated_path(ModelInfo.__init__)  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One finished sequence, as the engine returns it.

    logprobs: the model's own log-probability of each token.
    scores: the score of each token after the processors, in the strategy's space.
    score: the value by which the strategy ranks its hypotheses.
    top_logprobs: per token, the `logprobs=n` best alternatives as (token, logprob), best first; None if not asked.
    unmet: as in Hypothesis.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    scores: tuple[float, ...]
    score: float
    finish_reason: str
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None
    unmet: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """Final tokens of one output; `finish_reason` is set with the output's last tokens.

    logprobs, top_logprobs: as in Output.
    """

    request: int
    output: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tentative:
    """Preview: the leading branch's tokens after output 0's committed tokens; they can still change.

    Sent after each change, to requests that want previews. It replaces the earlier preview, without the tokens that
    have been committed since.
    """

    request: int
    output: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The request is done.

    outputs: in the strategy's order.
    rows: the last reply, for strategies that only ask.
    trace: the recording, if the request asked for one (unspool.engine.trace.recorder); else None.
    passes: number of forward passes of the model with this request, without those of a draft model.
    cached_tokens: number of prompt tokens that prefix caching provided.
    """

    request: int
    outputs: tuple[Output, ...]
    rows: Reply = ()
    trace: Recording | None = None
    passes: int = 0
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request ended with an error; other requests continue."""

    request: int
    error: Exception


Event: TypeAlias = Committed | Tentative | Finished | Failed

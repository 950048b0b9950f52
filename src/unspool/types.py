"""The words a strategy and the engine exchange, and what a request brings in and takes out.

Plain values only: no tensors but in `Rows` and `Distribution`, no behaviour beyond reading. Imports nothing of ours.

A *branch* is one partial output of a request. A strategy numbers its branches itself; branch `ROOT` exists from the
start and holds the prompt alone. Where the request brings a draft model, branch `DRAFT` holds the prompt there; what is
forked from it stays on the draft model. The *length* of a branch counts its output tokens, so the root's length is 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

if TYPE_CHECKING:
    import torch

    from unspool.records import Recording

ROOT = 0
DRAFT = -1

Space: TypeAlias = Literal["logits", "log_probs"]
Seq: TypeAlias = int


class Candidate(NamedTuple):
    """One possible next token of a branch.

    score: after the processors, in the strategy's space, not renormalised.
    logprob: the model's own natural-log probability, before any processor.
    ends: None, or why the sequence would end with this token: "eos", "stop", "length", "time" or a criterion's name.
    """

    token: int
    score: float
    logprob: float
    ends: str | None


class Drop(NamedTuple):
    """The branch is given up; its number is never used again."""

    branch: int


class Keep(NamedTuple):
    """The branch keeps only its first `length` output tokens."""

    branch: int
    length: int


class Fork(NamedTuple):
    """`child`, a new number, becomes a copy of `parent` as it stands before this turn's extensions."""

    parent: int
    child: int


class Extend(NamedTuple):
    """The tokens are appended to the branch."""

    branch: int
    tokens: tuple[int, ...]


Move: TypeAlias = Drop | Keep | Fork | Extend


@dataclass(frozen=True, slots=True)
class Ask:
    """What the strategy wants to know of the position `back` tokens before the branch's newest one.

    back=0 asks what follows the newest token. Positions inside the prompt may be asked by `Score` alone, and before
    the branch has been extended: they are answered with the model's own log-probabilities, since processors speak of
    output only.

    avoid: tokens that other branches have chosen for this position, each as often as it was chosen; the diversity
    processor makes them less likely.
    """

    branch: int
    back: int = field(default=0, kw_only=True)
    avoid: tuple[int, ...] = field(default=(), kw_only=True)


@dataclass(frozen=True, slots=True)
class Top(Ask):
    """The k best tokens, best first; ties go to the lowest token id. Fewer where fewer are allowed."""

    k: int


@dataclass(frozen=True, slots=True)
class Sample(Ask):
    """One draw from softmax(scores) under the request's noise for this output index."""

    output: int = 0


@dataclass(frozen=True, slots=True)
class Perturbed(Ask):
    """k draws without replacement, in the order drawn: the k tokens of largest score + Gumbel noise (`Row.perturbed`).

    Adding a branch's accumulated score to `perturbed` makes rows comparable: the largest k over all rows are draws
    without replacement from the joint distribution. lane: separates the noise of branches asked at one position
    (the beam rank).
    Source: Kool et al. 2019, Stochastic Beams and Where to Find Them, section 2.3.
    """

    k: int
    lane: int = 0
    output: int = 0


@dataclass(frozen=True, slots=True)
class Score(Ask):
    """The named tokens, in the order named."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Similarity(Ask):
    """How much the newest token repeats: the greatest cosine of its hidden state to those before it (`Row.similarity`).

    The hidden states are what the model's head reads, of prompt and output. Only strategies with `hidden_states = True`
    may ask, about a branch that holds at least two tokens, and with back=0.
    Source: Su et al. 2022, A Contrastive Framework for Neural Text Generation, section 3.2.
    """


@dataclass(frozen=True, slots=True)
class Whole(Ask):
    """Everything, as a `Distribution`: for tracing and for strategies of the user's own."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The exact distribution of one position, with what each processor did to it.

    Shapes: [vocab] each, on the CPU. `logprobs`, float64, is the model's own. `scores`, float64, is after the
    processors, which work in float32. `cut_by[t]` is the index into `processors` of the one that set token t to -inf, or -1 if t is
    still allowed.
    """

    logprobs: torch.Tensor
    scores: torch.Tensor
    cut_by: torch.Tensor
    processors: tuple[str, ...]

    def forbidden_by(self, token: int) -> str | None:
        """Return the name of the processor that forbade this token, or None where it is allowed."""
        index = int(self.cut_by[token])
        return None if index < 0 else self.processors[index]


class Row(NamedTuple):
    """The answer to one Ask.

    log_norm: logsumexp of the row's scores over the vocabulary, so that score - log_norm is a log-probability.
    perturbed: for `Perturbed`, score + noise of each candidate; else empty.
    similarity: for `Similarity`, in [-1, 1]; such a row has no candidates, and its log_norm is NaN.
    """

    candidates: tuple[Candidate, ...]
    log_norm: float
    perturbed: tuple[float, ...] = ()
    distribution: Distribution | None = None
    similarity: float | None = None


Reply: TypeAlias = tuple[Row, ...]
"""One Row for each Ask of the Turn, in the same order."""


class Hypothesis(NamedTuple):
    """A sequence: the first `length` output tokens of a branch (dropped or not), then `last` where there is one.

    unmet: what it lacks of what the request demands of every output, and why, in words; None where nothing is missing.
    """

    branch: int
    length: int
    last: Candidate | None
    score: float
    unmet: str | None = None


class Commit(NamedTuple):
    """The first `length` tokens of the branch can no longer change in output `output`; with `finished`, that is all."""

    output: int
    branch: int
    length: int
    finished: Hypothesis | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One thing a strategy says: moves are applied as a whole (drops, keeps, forks, extensions), then asks answered.

    Branches that are not named wait. A Turn without moves asks again about positions already computed.
    """

    moves: tuple[Move, ...] = ()
    asks: tuple[Ask, ...] = ()
    commits: tuple[Commit, ...] = ()
    note: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """What the encoder of an encoder-decoder model reads, once for a request.

    inputs: arguments of the model's encoder by name, tensors with a batch dimension of 1 (`input_ids`,
    `input_features`, `pixel_values`, their `attention_mask`); or `encoder_outputs` alone, the encoder's last hidden
    state. token_ids: the source as ids if it is text; empty if it is not.
    """

    inputs: Mapping[str, Any]
    token_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """Tokens to append to one cached sequence, and where logits are wanted.

    asked: indices into `tokens`, ascending. hidden: whether the hidden states of all tokens are wanted.
    layers: inner layers whose logits are wanted as well at the asked positions; layer n is what n layers have made of
    the embeddings, 0 <= n < `ModelInfo.num_layers`. source: encoder input, given with a sequence's first feed alone.
    invariant: the rows must not depend on what else is in the pass, nor on how the sequence was cut into feeds.
    """

    seq: Seq
    tokens: Sequence[int]
    asked: tuple[int, ...]
    hidden: bool = False
    layers: tuple[int, ...] = ()
    invariant: bool = False
    source: Source | None = None


class Rows(NamedTuple):
    """What a forward brings, feed by feed in the order given.

    logits: [asked rows, vocab] float32. hidden: [tokens of the feeds that want them, width], what the model's head
    reads, or None where no feed does. inner: [asked rows x layers of the feeds that name some, vocab] float32, the
    layers of one asked row side by side, read by the model's own head without its last normalisation; or None.
    """

    logits: torch.Tensor
    hidden: torch.Tensor | None = None
    inner: torch.Tensor | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What the engine must know of a model.

    max_length: most tokens in one sequence, prompt included; None where the model sets no bound.
    max_sequences, max_tokens: most live sequences and most cached tokens over all of them; a request that needs more is
    refused. None for no limit.
    soft_max_sequences, soft_max_tokens: the same, but a request that needs more runs alone. None for no limit.
    bytes_per_token: of keys and values of one cached token, over all layers; 0 where none are kept, None where they lie
    in a cache of the model's own.
    batch_invariant: whether feeds marked `invariant` can be honoured.
    batch_invariance_obstacle: why they cannot, and a way out; "" if they can.
    hidden_states: whether feeds marked `hidden` can be honoured.
    num_layers: layers whose logits `Feed.layers` can name; None where the runtime cannot look inside.
    reads_whole: whether a prompt must be fed in one forward, whatever its length: its parts would be read twice, or as
    other passes than those of transformers' `generate`.
    tied_head: whether the head is the embedding itself.
    path: which implementation runs the model, and why, in words.
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
    batch_invariant: bool = False
    batch_invariance_obstacle: str = ""
    hidden_states: bool = False
    num_layers: int | None = None
    reads_whole: bool = False
    tied_head: bool = False
    path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One finished sequence, as the engine hands it over.

    logprobs: the model's own log-probability of each token; scores: after the processors, in the strategy's space.
    top_logprobs: for each token the `logprobs=n` best alternatives as (token, logprob), best first; None if not asked.
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
    """Tokens that can no longer change in one output; `finish_reason` is set with the output's last ones."""

    request: int
    output: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    finish_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Tentative:
    """What the leading branch holds beyond output 0's committed tokens, and may still be taken back.

    Sent to requests that want it, whenever it has changed; replaces what was sent before, of which commits meanwhile
    have taken the beginning.
    """

    request: int
    output: int
    token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """The request is done: its outputs in the strategy's order, and the last reply, for strategies that only ask.

    trace: what was recorded, where the request asked for it (unspool.engine.recorder).
    passes: forward passes of the model in which the request took part; those of a draft model do not count.
    """

    request: int
    outputs: tuple[Output, ...]
    rows: Reply = ()
    trace: Recording | None = None
    passes: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The request ended with an error of its own; the others go on."""

    request: int
    error: Exception


Event: TypeAlias = Committed | Tentative | Finished | Failed

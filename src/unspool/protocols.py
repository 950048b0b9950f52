"""The narrow waist: what a model, a strategy, a processor and a stopping criterion must do to take part."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, runtime_checkable

from unspool.types import Feed, Hypothesis, ModelInfo, Reply, Rows, Seq, Space, Turn

if TYPE_CHECKING:
    import torch

    from unspool.config import GenerationConfig


@runtime_checkable
class Runtime(Protocol):
    """A model that can hold many partial sequences at once. It owns a cached prefix of each; the engine owns tokens.

    One that can begin a sequence with what it has computed for another has a method `recall`: see Recall.
    """

    info: ModelInfo

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append every feed to its sequence and return the asked rows.

        The first feed of an unknown `seq` opens it. All or nothing: if this raises, cached lengths are as before.
        No two feeds name the same sequence.

        Returns:
            What `Rows` says: logits of the asked positions, and hidden states and inner layers where feeds want them.
        """
        ...

    def fork(self, seq: Seq, child: Seq) -> None:
        """Let the unknown `child` hold the same tokens as `seq`; either may then change."""
        ...

    def truncate(self, seq: Seq, keep: int) -> int:
        """Keep at most the first `keep` tokens. Returns how many are still cached: the engine feeds the rest again."""
        ...

    def release(self, seq: Seq) -> None:
        """Forget the sequence and free its memory. An unknown one is no error: it was never fed."""
        ...


class Recall(Protocol):
    """What a Runtime may do besides, as its method `recall`: begin a sequence with what is cached already."""

    def __call__(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool) -> int:
        """Let the unknown `seq` hold as many of the leading `tokens` as are cached, for whatever sequence.

        What a released sequence has left behind counts as well. Sequences that were given a source are neither opened
        nor looked at.

        Args:
            tokens: what `seq` may begin with, at least one; more is fed afterwards in any case.
            least: where fewer are cached, none are taken; at least 1.
            invariant: whether only tokens count that were computed for feeds with `invariant`.

        Returns:
            How many tokens `seq` holds now. Where it is 0, or this raises, `seq` is as unknown as before.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What strategies, processors and criteria may know of their request.

    config: resolved, every option final. prompt: token ids. max_new_tokens: what the request, its `max_length` and
    the model's own length leave, at least 1. seed: of the request. info: of the model. eos_token_ids: the request's.
    min_tokens_to_keep: truncating processors never leave fewer tokens allowed than this. draft: of the draft model, or
    None where the request brings none. layers: inner layers whose logits are contrasted with the model's own.
    source_ids: token ids of what the encoder reads; the prompt itself for models without one.
    """

    config: GenerationConfig
    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int
    info: ModelInfo
    eos_token_ids: tuple[int, ...]
    min_tokens_to_keep: int = 1
    draft: ModelInfo | None = None
    layers: tuple[int, ...] = ()
    source_ids: tuple[int, ...] = ()


Conversation: TypeAlias = Generator[Turn, Reply, list[Hypothesis]]


class Strategy(Protocol):
    """A decoding strategy: a conversation with the engine, in plain numbers.

    One that can go on while some of its branches have no token left to go on with has `bears_dead_ends = True`: such a
    row has no candidates, and only a search that finds nothing at all is an error.
    One whose first asked branch is no leader to be shown in advance has an attribute `leads = False`.
    One that asks for `Similarity` says so with an attribute `hidden_states = True`. One that not every request can be
    decoded with has a method `check(context)`, which raises before the request is queued.
    """

    name: str
    space: Space

    def max_branches(self, config: GenerationConfig) -> int:
        """Return the most branches alive at once, on the model and on the draft model each; admission reserves them."""
        ...

    def run(self, context: Context) -> Conversation:
        """Yield Turns, receive Replies, return the finished hypotheses, best first."""
        ...


class RowKey(NamedTuple):
    """Names one row to processors that draw noise, and says what the diversity processor avoids.

    seed, prompt, output, position: the fields of `unspool.noise.NoiseKey`; the processor adds its name as the lane.
    """

    seed: int
    prompt: int
    output: int
    position: int
    avoid: tuple[int, ...] = ()


class Processor(Protocol):
    """One kind of change to the scores, for all requests at once; what it remembers of a branch is a value.

    One object serves every request: parameters live in the state. States are copied (`fork`) when a branch forks and
    may be advanced in place otherwise.
    """

    name: str

    def start(self, context: Context) -> Any | None:
        """Return the state after the prompt, or None where this request's options leave the processor off."""
        ...

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more output token; may change `state` and return it."""
        ...

    def fork(self, state: Any) -> Any:
        """Return a state that can be advanced apart from this one; immutable states return themselves."""
        ...

    def apply(self, states: Sequence[Any], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the changed scores; `scores` is the caller's to lose and may be changed in place.

        Args:
            states: one for each row.
            scores: [rows, vocab] float32; -inf is forbidden.
            keys: one for each row.
        """
        ...


class Criterion(Protocol):
    """A reason to stop. States follow forks as values: `advance` returns a new one and leaves the old one alone.

    One that had rather judge many tokens in one call has a method `foresee(pairs)`: it is told all (state, token) that
    `ends` is about to be asked about, of all requests that hold the same object, row by row, best candidates first.
    """

    name: str

    def start(self, context: Context) -> Any:
        """Return the state before the first output token."""
        ...

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more output token."""
        ...

    def ends(self, state: Any, token: int) -> bool:
        """Return whether the sequence would end with this token."""
        ...

"""The narrow waist: base classes of models, strategies, processors and stopping criteria.

Optional abilities are attributes and methods with defaults. Objects that have the required members without the base
class work too: `unspool.adapters` gives them the defaults.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from unspool.strategy_facts import StrategyFacts
from unspool.types import Ask, Feed, Hypothesis, ModelInfo, Reply, Rows, Seq, Space, Turn

if TYPE_CHECKING:
    import torch

    from unspool.grammars import CompiledGrammar
    from unspool.options.fields.options import Options
    from unspool.source_info import SourceInfo


class Runtime(ABC):
    """A model with a cache of many partial sequences. It owns a cached prefix of each; the engine owns the tokens.

    Four methods are required. The attributes and `match_prefix` are optional abilities with their defaults.

    Attributes:
        info: the properties of the model.
        source: the inputs of the model's encoder; None for models without an encoder.
        has_prefix_caching: True if the runtime implements `match_prefix`.
        in_place: True if passes run on modules that belong to the caller; the runtime must not keep them alive.
    """

    info: ModelInfo
    source: SourceInfo | None = None
    has_prefix_caching: bool = False
    in_place: bool = False

    @abstractmethod
    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append every feed to its sequence and return the asked rows.

        The first feed of an unknown `seq` opens it. The call is atomic: if it raises, cached lengths do not change.
        Each feed of a call has a different sequence.

        Returns:
            The logits of the asked positions; hidden states and inner layers if feeds ask for them. See Rows.
        """

    @abstractmethod
    def fork(self, seq: Seq, child: Seq) -> None:
        """Copy `seq` to the unknown `child`; afterwards both can change independently.

        Beam search reorders the cache by forks, drops and extensions of branches.
        """

    @abstractmethod
    def truncate(self, seq: Seq, keep: int) -> int:
        """Keep at most the first `keep` tokens. Returns the number still cached; the engine feeds the rest again."""

    @abstractmethod
    def release(self, seq: Seq) -> None:
        """Remove the sequence and free its memory. An unknown sequence is ignored: it was never fed."""

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool, salt: str = "") -> int:
        """Prefix caching: open `seq` with the longest prefix of `tokens` that is cached for any sequence.

        The cache includes released sequences. Sequences with an encoder input do not take part.

        Args:
            seq: an unknown sequence, without an encoder input.
            tokens: the first tokens of `seq`, at least one; the engine always feeds more afterwards.
            least: the shortest prefix to use, in tokens, at least 1.
            invariant: True to use only tokens computed for feeds with `invariant`.
            salt: use only sequences that were opened with this `Feed.salt`.

        Returns:
            The number of tokens that `seq` now has. If it is 0, or if this raises, `seq` stays unknown.
        """
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The data of a request for its strategy, processors and criteria.

    config: the request's options, resolved.
    prompt: token ids.
    max_new_tokens: the most output tokens by `max_new_tokens`, `max_length` and the model's maximum length; at least 1.
    seed: the request's seed.
    info: the properties of the model.
    eos_token_ids: the request's end-of-sequence tokens.
    min_tokens_to_keep: the fewest tokens that a truncation must keep allowed.
    draft: the properties of the draft model; None without a draft model.
    layers: inner layers to contrast with the model's output (DoLa); empty for none.
    source_ids: token ids of the encoder's input; the prompt for decoder-only models.
    grammar: the formal language of the output; None for any text.
    """

    config: Options
    prompt: tuple[int, ...]
    max_new_tokens: int
    seed: int
    info: ModelInfo
    eos_token_ids: tuple[int, ...]
    min_tokens_to_keep: int = 1
    draft: ModelInfo | None = None
    layers: tuple[int, ...] = ()
    source_ids: tuple[int, ...] = ()
    grammar: CompiledGrammar | None = None


Conversation: TypeAlias = Generator[Turn, Reply, list[Hypothesis]]


class Strategy(ABC):
    """A decoding strategy: a generator that exchanges Turns and Replies with the engine, in plain numbers.

    `name`, `space`, `max_branches` and `run` are required. The rest are optional abilities with their defaults.

    Attributes:
        name: the name in `GenerationConfig.strategy` and in results.
        space: the numbers that processors change: "logits" or "log_probs".
        hidden_states: True if it asks for `Similarity`.
        inner_layers: True if it needs the inner layers of the model.
        shows_tentative: False if the first branch that a turn asks about must not be shown as a preview.
        allows_empty_rows: True if it can continue if every token of some branch is forbidden. The candidates of such a
            row are empty. An error is raised only if the strategy returns zero hypotheses.
        facts: the options that select it and that it reads; required for a strategy that is used by name.
    """

    name: str
    space: Space
    hidden_states: bool = False
    inner_layers: bool = False
    shows_tentative: bool = True
    allows_empty_rows: bool = False
    facts: StrategyFacts = StrategyFacts()

    @abstractmethod
    def max_branches(self, config: Options) -> int:
        """Return the most branches alive at once, per model (target and draft); admission reserves memory for them."""

    def check(self, context: Context) -> None:  # noqa: B027 (optional)
        """Check that the strategy can decode this request; raise if not. Called before the request is queued."""

    @abstractmethod
    def run(self, context: Context) -> Conversation:
        """Yield Turns, receive Replies, and return the finished hypotheses, best first."""


class WrappedStrategy(Strategy):
    """A wrapper around a strategy, with all of its abilities; subclasses override `run`."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        for ability in Strategy.__annotations__:
            setattr(self, ability, getattr(inner, ability))

    def max_branches(self, config: Options) -> int:
        return self.inner.max_branches(config)

    def check(self, context: Context) -> None:
        """Check that the inner strategy can decode this request; raise if not."""
        self.inner.check(context)

    def run(self, context: Context) -> Conversation:
        """Run the inner conversation."""
        return self.inner.run(context)

    def run_with(self, context: Context, asks: tuple[Ask, ...], note: Callable[[Reply], None]) -> Conversation:
        """Run the inner conversation with further asks before those of its first Turn.

        Args:
            note: called with the rows that answer `asks`, before the inner strategy gets its own.
        """
        conversation = self.inner.run(context)
        first = next(conversation)
        reply = yield replace(first, asks=(*asks, *first.asks))
        note(reply[: len(asks)])
        reply = reply[len(asks) :]
        while True:
            try:
                turn = conversation.send(reply)
            except StopIteration as stop:
                outcome: list[Hypothesis] = stop.value
                return outcome
            reply = yield turn


class RowKey(NamedTuple):
    """The noise key of one row for processors that draw, and the tokens that the diversity processor penalizes.

    seed, prompt, output, position: the fields of `unspool.noise.NoiseKey`; the processor adds its name as the lane.
    taken_tokens: as in `Ask`.
    """

    seed: int
    prompt: int
    output: int
    position: int
    taken_tokens: tuple[int, ...] = ()


class Processor(ABC):
    """A logits processor: changes the scores of all requests in a batch, with one state per branch.

    One object serves every request: parameters are in the state. States are copied (`fork`) when a branch forks, so
    `advance` can change a state in place. `name`, `start` and `apply` are required.

    Attributes:
        name: its name in traces, in results and in errors.
    """

    name: str

    @abstractmethod
    def start(self, context: Context) -> Any | None:
        """Return the state after the prompt, or None if the processor is off for this request."""

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more output token; can change `state` and return it."""
        return state

    def fork(self, state: Any) -> Any:
        """Return an independent copy of the state; an immutable state can be returned itself."""
        return state

    @abstractmethod
    def apply(self, states: Sequence[Any], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the changed scores; can modify `scores` in place.

        Args:
            states: the state of each row's branch.
            scores: [rows, vocab] float32; -inf is forbidden.
            keys: one per row.
        """

    def support(self, state: Any, vocab_size: int) -> torch.Tensor | None:
        """Return the tokens that this processor allows in this state; None if that depends on the scores.

        Returns:
            [vocab] bool, on the CPU.
        """
        return None

    def forced_tokens(self, state: Any, most: int) -> tuple[int, ...]:
        """Return the next tokens that this processor forces for any scores, in order; empty if it allows several.

        The engine feeds them to the model in one pass. They must not include an end-of-sequence token.

        Args:
            most: the most tokens to return, at least 0.
        """
        return ()


class Criterion(ABC):
    """A stopping criterion. States are immutable values: `advance` returns a new state and keeps the old one.

    `name`, `start`, `advance` and `ends` are required.

    Attributes:
        name: the finish reason of a sequence that it ends.
        prepares: True if the criterion implements `prepare`.
    """

    name: str
    prepares: bool = False

    @abstractmethod
    def start(self, context: Context) -> Any:
        """Return the state before the first output token."""

    @abstractmethod
    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more output token."""

    @abstractmethod
    def ends(self, state: Any, token: int) -> bool:
        """Return True if the sequence would end with this token."""

    def prepare(self, pairs: Sequence[tuple[Any, int]]) -> None:  # noqa: B027 (optional)
        """Judge many tokens in one batch, before `ends` is called for each.

        Args:
            pairs: every (state, token) of the coming calls of `ends`, of all requests with this object, row by row,
                best candidates first.
        """

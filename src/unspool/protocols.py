"""The narrow waist: base classes of models, strategies, processors and stopping criteria.

Optional abilities are attributes and methods with defaults. Objects that have the required members without the base
class work too: `unspool.adapters` gives them the defaults.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from unspool.strategy_facts import StrategyFacts
from unspool.types import Feed, Hypothesis, ModelInfo, Reply, Rows, Seq, Space, Turn

if TYPE_CHECKING:
    import torch

    from unspool.config.fields.options import Options
    from unspool.runtimes.source_info import SourceInfo


class Runtime:
    """A model that can hold many partial sequences at once. It owns a cached prefix of each; the engine owns tokens.

    Four methods are required. The attributes and `match_prefix` are optional abilities with their defaults.

    Attributes:
        info: of the model.
        source: how the model reads the input of its encoder; None for models without one.
        has_prefix_caching: True if `match_prefix` can find anything.
        in_place: True if passes run on modules that belong to the caller, which must not be kept alive.
    """

    info: ModelInfo
    source: SourceInfo | None = None
    has_prefix_caching: bool = False
    in_place: bool = False

    def forward(self, feeds: Sequence[Feed]) -> Rows:
        """Append every feed to its sequence and return the asked rows.

        The first feed of an unknown `seq` opens it. All or nothing: if this raises, cached lengths are as before.
        No two feeds name the same sequence.

        Returns:
            logits of the asked positions; hidden states and inner layers if feeds want them. See Rows.
        """
        raise NotImplementedError

    def fork(self, seq: Seq, child: Seq) -> None:
        """Let the unknown `child` hold the same tokens as `seq`; either can change afterwards."""
        raise NotImplementedError

    def truncate(self, seq: Seq, keep: int) -> int:
        """Keep at most the first `keep` tokens. Returns how many are still cached: the engine feeds the rest again."""
        raise NotImplementedError

    def release(self, seq: Seq) -> None:
        """Forget the sequence and free its memory. An unknown sequence is no error: it was never fed."""
        raise NotImplementedError

    def match_prefix(self, seq: Seq, tokens: Sequence[int], *, least: int, invariant: bool) -> int:
        """Prefix caching: let the unknown `seq` hold as many of the leading `tokens` as are cached for any sequence.

        Tokens of released sequences count as well. Sequences that were given a source are neither opened nor read.

        Args:
            tokens: the beginning of `seq`, at least one; more is fed afterwards in any case.
            least: if fewer are cached, none are taken; at least 1.
            invariant: True if only tokens count that were computed for feeds with `invariant`.

        Returns:
            How many tokens `seq` holds now. If it is 0, or if this raises, `seq` is as unknown as before.
        """
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What strategies, processors and criteria may know of their request.

    config: resolved, every option final. prompt: token ids. max_new_tokens: what the request, its `max_length` and
    the model's own length leave, at least 1. seed: of the request. info: of the model. eos_token_ids: the request's.
    min_tokens_to_keep: truncating processors never leave fewer tokens allowed than this. draft: of the draft model, or
    None where the request brings none. layers: inner layers whose logits are contrasted with the model's own.
    source_ids: token ids of what the encoder reads; the prompt itself for models without one.
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


Conversation: TypeAlias = Generator[Turn, Reply, list[Hypothesis]]


class Strategy:
    """A decoding strategy: a conversation with the engine, in plain numbers.

    `name`, `space`, `max_branches` and `run` are required. The rest are optional abilities with their defaults.

    Attributes:
        name: as in `GenerationConfig.strategy`, and in results.
        space: the numbers that processors change: "logits" or "log_probs".
        hidden_states: True if it asks for `Similarity`.
        inner_layers: True if it needs a model whose inner layers can be read.
        shows_tentative: False if the first branch that a turn asks about must not be shown as a preview.
        allows_empty_rows: True if it can go on although some branches have no token left. Such a row has no candidates;
            only a search that finds nothing at all is an error.
        facts: how options lead to it and which it reads; needed by strategies that are used by name.
    """

    name: str
    space: Space
    hidden_states: bool = False
    inner_layers: bool = False
    shows_tentative: bool = True
    allows_empty_rows: bool = False
    facts: StrategyFacts = StrategyFacts()

    def max_branches(self, config: Options) -> int:
        """Return the most branches alive at once, on the model and on the draft model each; admission reserves them."""
        raise NotImplementedError

    def check(self, context: Context) -> None:
        """Raise if the strategy cannot decode this request. Called before the request is queued."""

    def run(self, context: Context) -> Conversation:
        """Yield Turns, receive Replies, return the finished hypotheses, best first."""
        raise NotImplementedError


class WrappedStrategy(Strategy):
    """A strategy around another one, with all of its abilities; subclasses change `run`."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        for ability in Strategy.__annotations__:
            setattr(self, ability, getattr(inner, ability))

    def max_branches(self, config: Options) -> int:
        return self.inner.max_branches(config)

    def check(self, context: Context) -> None:
        """Raise if the inner strategy cannot decode this request."""
        self.inner.check(context)

    def run(self, context: Context) -> Conversation:
        """Hold the inner conversation."""
        return self.inner.run(context)


class RowKey(NamedTuple):
    """Names one row to processors that draw noise, and says what the diversity processor avoids.

    seed, prompt, output, position: the fields of `unspool.noise.NoiseKey`; the processor adds its name as the lane.
    """

    seed: int
    prompt: int
    output: int
    position: int
    avoid: tuple[int, ...] = ()


class Processor:
    """One kind of change to the scores, for all requests at once; its memory of a branch is a value.

    One object serves every request: parameters are in the state. States are copied (`fork`) when a branch forks and
    can be advanced in place otherwise. `name`, `start` and `apply` are required.
    """

    name: str

    def start(self, context: Context) -> Any | None:
        """Return the state after the prompt, or None if this request's options leave the processor off."""
        raise NotImplementedError

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more output token; can change `state` and return it."""
        return state

    def fork(self, state: Any) -> Any:
        """Return a state that can be advanced apart from this one; immutable states return themselves."""
        return state

    def apply(self, states: Sequence[Any], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the changed scores; can modify `scores` in place.

        Args:
            states: one per row.
            scores: [rows, vocab] float32; -inf is forbidden.
            keys: one per row.
        """
        raise NotImplementedError


class Criterion:
    """A reason to stop. States follow forks as values: `advance` returns a new one and leaves the old one alone.

    `name`, `start`, `advance` and `ends` are required.

    Attributes:
        prepares: True if `prepare` does something.
    """

    name: str
    prepares: bool = False

    def start(self, context: Context) -> Any:
        """Return the state before the first output token."""
        raise NotImplementedError

    def advance(self, state: Any, token: int) -> Any:
        """Return the state after one more output token."""
        raise NotImplementedError

    def ends(self, state: Any, token: int) -> bool:
        """Return whether the sequence would end with this token."""
        raise NotImplementedError

    def prepare(self, pairs: Sequence[tuple[Any, int]]) -> None:
        """Judge many tokens in one call, before `ends` is asked about each.

        Args:
            pairs: every (state, token) that `ends` is about to be asked about, of all requests that hold this object,
                row by row, best candidates first.
        """

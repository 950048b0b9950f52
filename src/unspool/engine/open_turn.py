"""The open turn of a strategy: its asks, and the rows that they still need. Knows no moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unspool.engine.branch_tree import BranchTree
from unspool.engine.branches import Branch, CachedSequence
from unspool.engine.prompt_rows import PromptRow
from unspool.engine.request import Request
from unspool.errors import StrategyError
from unspool.protocols import Context, Processor
from unspool.types import Ask, GumbelTopK, Sample, Score, Similarity, Top, Turn


class Missing(NamedTuple):
    """A sequence that needs a forward pass before the open turn can be answered.

    lengths: of the rows that it lacks, ascending; empty if it lacks only the hidden state of its newest token.
    """

    branch: Branch
    cached_seq: CachedSequence
    lengths: list[int]


class OpenTurn:
    """The asks of one turn. Make it before the turn's moves are applied, and call `check` after them.

    Args:
        turn: of the strategy.
        tree: the branches of the request.
        request: the request.
        context: facts about the request.

    Attributes:
        backs: branch --> positions that the turn asks about, counted back from the newest token.
    """

    def __init__(self, turn: Turn, tree: BranchTree, request: Request, context: Context) -> None:
        self._asks, self._tree, self._request, self._context = turn.asks, tree, request, context
        self._prompt_asks: dict[tuple[int, int], list[Ask]] = {}
        self._missing: list[Missing] | None = None
        self.backs: dict[int, set[int]] = {}
        for ask in turn.asks:
            backs = self.backs.setdefault(ask.branch, set())
            if not isinstance(ask, Similarity):
                backs.add(ask.back)

    def check(self) -> None:
        """Raise StrategyError for asks that a forward pass cannot answer."""
        for ask in self._asks:
            branch = self._tree.live(ask.branch)
            if branch.drafts is not self._tree.branches[self._asks[0].branch].drafts:
                raise StrategyError(f"{ask}: a Turn asks about the model or about the draft model, not about both")
            length = branch.length - ask.back
            if ask.back < 0 or branch.total - ask.back < 1:
                raise StrategyError(f"{ask}: branch {branch.number} lacks that position")
            if isinstance(ask, Similarity):
                self._check_similarity(ask, branch)
                continue
            for cached_seq in branch.cached_seqs if length >= 0 else branch.cached_seqs[:1]:
                if len(cached_seq.prompt) + length <= cached_seq.cached and not cached_seq.has_row(length):
                    raise StrategyError(f"{ask}: that row was computed before the branch last grew and is gone")
            if length < 0:
                self._check_prompt_ask(ask, branch.main.prompt_rows.get(length))
                self._prompt_asks.setdefault((ask.branch, length), []).append(ask)
            if isinstance(ask, Top | GumbelTopK) and (not isinstance(ask.k, int) or ask.k < 1):
                raise StrategyError(f"{ask}: k must be at least 1")
            named = (*ask.taken_tokens, *(ask.tokens if isinstance(ask, Score) else ()))
            if named and not all(0 <= token < self._context.info.vocab_size for token in named):
                raise StrategyError(f"{ask}: a token is outside the vocabulary of {self._context.info.vocab_size}")
            if isinstance(ask, Sample | GumbelTopK) and ask.output < 0:
                raise StrategyError(f"{ask}: output must be at least 0")

    def _check_prompt_ask(self, ask: Ask, known: Mapping[Ask, PromptRow] | None) -> None:
        """Check an ask about a position inside the prompt. known: its answers, if the position is computed."""
        if not isinstance(ask, Score | Top):
            raise StrategyError(f"{ask}: only Score and Top can ask about positions inside the prompt")
        if known is not None and ask not in known:
            raise StrategyError(f"{ask}: ask about a position inside the prompt in one turn: its logits are not kept")

    def _check_similarity(self, ask: Similarity, branch: Branch) -> None:
        if self._tree.hidden is None:
            raise StrategyError(f"{ask}: only a strategy with hidden_states = True can ask for a similarity")
        if branch.drafts or ask.back or branch.total < 2:
            raise StrategyError(f"{ask}: only the newest of at least two tokens on the model can be compared")

    @property
    def missing(self) -> list[Missing]:
        """The sequences that need a forward pass, in the order of the asks."""
        if self._missing is None:
            # A similarity needs the hidden state of the newest token, even if it needs no row.
            hidden = self._tree.hidden is not None
            branches = [self._tree.branches[number] for number in self.backs]
            every = [(branch, cached_seq) for branch in branches for cached_seq in branch.cached_seqs]
            found = [Missing(*each, self._wanted(*each)) for each in every]
            self._missing = [
                each
                for each in found
                if each.lengths or (hidden and each.cached_seq.pending and each.cached_seq is each.branch.main)
            ]
        return self._missing

    @property
    def is_ready(self) -> bool:
        """True if all rows that the open turn asks about are computed."""
        return not self.missing

    def rows_arrived(self) -> None:
        """Take note that a forward pass computed rows for the open turn."""
        self._missing = None

    def _wanted(self, branch: Branch, cached_seq: CachedSequence) -> list[int]:
        """Return the lengths, ascending, that the open turn asks about and for which this sequence lacks a row."""
        tip, scores_prompt = branch.length, cached_seq is branch.main
        lengths = [tip - back for back in self.backs[branch.number] if scores_prompt or back <= tip]
        return sorted([length for length in lengths if not cached_seq.has_row(length)])

    def prompt_asks(self, branch: Branch, length: int) -> Sequence[Ask]:
        """Return the open turn's asks about a position inside the prompt."""
        return self._prompt_asks[branch.number, length]

    def forced_tokens(self, chain: Sequence[Processor]) -> tuple[int, ...]:
        """Return the output tokens that the processors force after the asked branch's newest token, for any logits.

        Empty if other branches are alive, because these would wait.
        """
        if not chain:
            return ()
        ask = self._asks[0]
        takes_one = isinstance(ask, Sample) or (isinstance(ask, Top) and ask.k == 1)
        is_alone = self._tree.num_live == 1 and len(self._asks) == 1 and self._request.lockstep_group is None
        branch = self._tree.live(ask.branch)
        if not takes_one or not is_alone or ask.back or branch.drafts or self._tree.hidden is not None:
            return ()
        if not branch.main.has_prompt or not branch.main.pending:
            return ()  # the prompt has a pass of its own, and tokens that were fed ahead need none
        most = self._context.max_new_tokens - branch.length - 1
        states = branch.branch_states[branch.length].processors
        found = (
            processor.forced_tokens(state, most)
            for processor, state in zip(chain, states, strict=True)
            if isinstance(processor, Processor)  # a user's processor can lack the base class
        )
        return next((tokens for tokens in found if tokens), ())

    def num_unread(self, branch: Branch, cached_seq: CachedSequence) -> int:
        """Return the number of leading tokens for which the open turn needs neither a row nor a hidden state."""
        if self._tree.hidden is not None and cached_seq is branch.main and not branch.drafts:
            return 0
        # The row of a length comes from feeding the token before.
        return len(cached_seq.prompt) + self._wanted(branch, cached_seq)[0] - 1

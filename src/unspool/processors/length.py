"""Length processors: forbid the end-of-sequence (EOS) tokens below a minimum, or raise their scores with length.

Owns: min_length, min_new_tokens, exponential_decay_length_penalty. Does not know: how a sequence ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unspool.errors import OptionError
from unspool.processors.cells import NO_IDS, Ids, cells_of, ids
from unspool.processors.history import Countdown, Counting
from unspool.processors.masks import forbid
from unspool.protocols import Context, Processor, RowKey

# The limit keeps scores finite, even after division by a small temperature.
_GREATEST_ADDITION = 1e30


class _Minimum(Counting):
    """Forbid the EOS tokens until the countdown reaches 0."""

    def apply(self, states: Sequence[Countdown], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, EOS forbidden in place in rows that are too short. scores: [rows, vocab]"""
        return forbid([s.tokens if s.remaining > 0 else NO_IDS for s in states], scores)


def _hold_back(remaining: int, context: Context) -> Countdown | None:
    eos = ids(context.eos_token_ids, context.info.vocab_size)
    return Countdown(remaining, eos) if remaining > 0 and len(eos) else None


class MinLength(_Minimum):
    """Forbid EOS until prompt and output together have `min_length` tokens. Off at None and 0, and without an EOS.

    Worked example: after a prompt of 3 tokens, min_length=5 forbids EOS at the first two steps.
    """

    name = "min_length"

    def start(self, context: Context) -> Countdown | None:
        """Return the EOS tokens and the number of steps that forbid them; None if it is off."""
        return _hold_back((context.config.min_length or 0) - len(context.prompt), context)


class MinNewTokens(_Minimum):
    """Forbid EOS until the output has `min_new_tokens` tokens. Off at None and 0, and without an EOS.

    Worked example: min_new_tokens=2 forbids EOS at the first two steps.
    """

    name = "min_new_tokens"

    def start(self, context: Context) -> Countdown | None:
        """Return the EOS tokens and the number of steps that forbid them; None if it is off."""
        return _hold_back(context.config.min_new_tokens or 0, context)


class Decay(NamedTuple):
    """num_tokens: output tokens so far. begin: output tokens without effect. factor: growth per token. eos: EOS ids."""

    num_tokens: int
    begin: int
    factor: float
    eos: Ids


class ExponentialDecay(Processor):
    """Raise the EOS scores exponentially after the output has passed a length. Off at None.

    exponential_decay_length_penalty=(begin, factor) adds |score| * (factor ** (n - begin) - 1), at most 1e30, after
    n > begin output tokens. The absolute value lets negative scores rise too. Forbidden tokens stay forbidden.

    Worked example: (2, 1.5) turns an EOS score of -4 after 4 output tokens into -4 + 4 * (1.5 ** 2 - 1) = 1.

    Source: transformers, `ExponentialDecayLengthPenalty`.
    """

    name = "exponential_decay_length_penalty"

    def start(self, context: Context) -> Decay | None:
        """Return the parameters; None if it is off.

        Raises:
            OptionError: if the request has an empty set of EOS tokens.
        """
        given = context.config.exponential_decay_length_penalty
        if given is None:
            return None
        eos = ids(context.eos_token_ids, context.info.vocab_size)
        if not len(eos):
            raise OptionError(self.name, given, "needs an EOS token to raise", "set `eos_token_id`, or use None")
        return Decay(0, int(given[0]), float(given[1]), eos)

    def advance(self, state: Decay, token: int) -> Decay:
        """Return the state after one more token."""
        return state._replace(num_tokens=state.num_tokens + 1)

    def fork(self, state: Decay) -> Decay:
        """Return the state: it is immutable."""
        return state

    def apply(self, states: Sequence[Decay], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with EOS raised in place in rows with more than `begin` tokens. scores: [rows, vocab]"""
        cells = cells_of([s.eos if s.num_tokens > s.begin else NO_IDS for s in states], scores)
        if len(cells.tokens):
            old = scores[cells.rows, cells.tokens]
            added = (old.abs() * cells.spread([_growth(s) for s in states])).clamp_(max=_GREATEST_ADDITION)
            scores[cells.rows, cells.tokens] = old + added.where(old.isfinite(), 0.0)
        return scores


def _growth(state: Decay) -> float:
    if state.num_tokens <= state.begin:
        return 0.0
    try:
        return min(state.factor ** (state.num_tokens - state.begin) - 1.0, _GREATEST_ADDITION)
    except OverflowError:
        return _GREATEST_ADDITION

"""Repetition, presence and frequency penalties on tokens that occurred before.

Owns: repetition, encoder repetition, presence and frequency penalty, and their scope (prompt, output, exclusions).
Does not know: n-grams and longer repeats.

    penalty_scope unset   repetition: prompt and output; presence and frequency: output only
    prompt_ignore_length  number of first prompt tokens that do not count, if the prompt is in scope
    penalty_exclude       tokens without repetition, presence and frequency penalty
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from unspool.processors.base import Fixed
from unspool.processors.cells import Cells, Ids, cells_of, floats_of, ids
from unspool.processors.history import TokenCounts
from unspool.protocols import Context, Processor, RowKey


@dataclass(slots=True)
class Seen:
    """The strength of a penalty, and the counts of the tokens that get it."""

    strength: float
    tokens: TokenCounts


class _Penalty(Processor):
    """Base of the penalties on seen tokens; subclasses compute the new scores."""

    name: str
    _off: float
    _scope: str

    def start(self, context: Context) -> Seen | None:
        """Return the tokens in scope; None if the penalty is off."""
        config = context.config
        strength = getattr(config, self.name)
        if strength is None or strength == self._off:
            return None
        scope = config.penalty_scope or self._scope
        prompt = context.prompt[config.prompt_ignore_length or 0 :] if scope == "prompt_and_output" else ()
        exclude = frozenset(config.penalty_exclude or ())
        return Seen(float(strength), TokenCounts(prompt, context.info.vocab_size, exclude))

    def advance(self, state: Seen, token: int) -> Seen:
        """Count the token, in place."""
        state.tokens.add(token)
        return state

    def fork(self, state: Seen) -> Seen:
        """Return a copy, in time proportional to the number of distinct tokens."""
        return Seen(state.strength, state.tokens.copy())

    def apply(self, states: Sequence[Seen], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with those of seen tokens changed in place. scores: [rows, vocab]"""
        cells = cells_of([s.tokens.ids for s in states], scores)
        old = scores[cells.rows, cells.tokens]  # --> [cells]
        scores[cells.rows, cells.tokens] = self._penalized(old, cells.spread([s.strength for s in states]), states)
        return scores

    def _penalized(self, old: torch.Tensor, strength: torch.Tensor, states: Sequence[Seen]) -> torch.Tensor:
        raise NotImplementedError


def _scaled(old: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    # A division would make a token with a negative score likelier.
    return torch.where(old < 0, old * factor, old / factor)


class RepetitionPenalty(_Penalty):
    """Divide the positive scores of seen tokens by `repetition_penalty`, and multiply their negative scores by it.

    The number of occurrences does not matter. Above 1 discourages repetition, below 1 encourages it. Off at None and
    1.0.

    Worked example: scores (3, -1, 2) after tokens 0, 1, 1 become (1.5, -2, 2) with repetition_penalty=2.

    Source: Keskar et al. 2019 (CTRL), with the correction for negative scores.
    """

    name = "repetition_penalty"
    _off = 1.0
    _scope = "prompt_and_output"

    def _penalized(self, old: torch.Tensor, strength: torch.Tensor, states: Sequence[Seen]) -> torch.Tensor:
        return _scaled(old, strength)


class PresencePenalty(_Penalty):
    """Subtract `presence_penalty` once from the score of each token that occurred. Off at None and 0.

    Worked example: scores (3, -1, 2) after output tokens 0, 1, 1 become (2.5, -1.5, 2) with presence_penalty=0.5.

    Source: OpenAI API reference, "frequency and presence penalties".
    """

    name = "presence_penalty"
    _off = 0.0
    _scope = "output"

    def _penalized(self, old: torch.Tensor, strength: torch.Tensor, states: Sequence[Seen]) -> torch.Tensor:
        return old - strength


class FrequencyPenalty(_Penalty):
    """Subtract `frequency_penalty` from a token's score for each time it occurred. Off at None and 0.

    Worked example: scores (3, -1, 2) after output tokens 0, 1, 1 become (2.5, -2, 2) with frequency_penalty=0.5.

    Source: OpenAI API reference, "frequency and presence penalties".
    """

    name = "frequency_penalty"
    _off = 0.0
    _scope = "output"

    def _penalized(self, old: torch.Tensor, strength: torch.Tensor, states: Sequence[Seen]) -> torch.Tensor:
        return old - strength * floats_of([s.tokens.counts for s in states], old)


class SourceTokens(NamedTuple):
    """The factor on the scores of source tokens, and the tokens."""

    factor: float
    tokens: Ids


class EncoderRepetitionPenalty(Fixed[SourceTokens]):
    """Divide the negative scores of source tokens by `encoder_repetition_penalty`, and multiply the positive ones.

    The source is the encoder's input, or the prompt of a decoder-only model. Above 1 favors words of the source. Off at
    None and 1.0.

    Worked example: scores (3, -1, 2) after the source 0, 1 become (6, -0.5, 2) with encoder_repetition_penalty=2.

    Source: transformers, `EncoderRepetitionPenaltyLogitsProcessor`.
    """

    name = "encoder_repetition_penalty"

    def start(self, context: Context) -> SourceTokens | None:
        """Return the source's distinct tokens; None if the penalty is off."""
        penalty = context.config.encoder_repetition_penalty
        if penalty is None or penalty == 1.0:
            return None
        return SourceTokens(1.0 / penalty, ids(context.source_ids, context.info.vocab_size))

    def apply(self, states: Sequence[SourceTokens], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with those of source tokens changed in place. scores: [rows, vocab]"""
        cells: Cells = cells_of([s.tokens for s in states], scores)
        old = scores[cells.rows, cells.tokens]
        scores[cells.rows, cells.tokens] = _scaled(old, cells.spread([s.factor for s in states]))
        return scores

"""Token masks: processors that forbid or force given tokens.

Owns: bad_words_ids, suppress_tokens, begin_suppress_tokens, forced_bos_token_id, forced_eos_token_id.
Does not know: the meaning of the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from unspool.errors import OptionError
from unspool.processors.base import Fixed
from unspool.processors.bias import refuse_unknown
from unspool.processors.cells import NO_IDS, Ids, cells_of, ids
from unspool.processors.history import Countdown, Counting
from unspool.processors.rows import FORBIDDEN, on_host
from unspool.processors.suffixes import Matching, SuffixMatching, matching
from unspool.protocols import Context, RowKey


def forbid(tokens: Sequence[Ids], scores: torch.Tensor) -> torch.Tensor:
    """Forbid, in place, the given tokens of each row."""
    if on_host(scores):
        # numpy writes a few cells in a fraction of the time that torch takes.
        numbers = scores.detach().numpy()
        for row, found in enumerate(tokens):
            if len(found):
                numbers[row, found] = FORBIDDEN
        return scores
    cells = cells_of(tokens, scores)
    if len(cells.tokens):
        scores[cells.rows, cells.tokens] = FORBIDDEN
    return scores


class BadWords(SuffixMatching):
    """Forbid each token that would complete one of the `bad_words_ids` sequences. Off at None and empty.

    A word of a single EOS token is ignored, as in transformers; use min_new_tokens or suppress_tokens instead.

    Worked example: with bad_words_ids=[[3], [1, 2]] token 3 is always forbidden, token 2 after token 1.
    """

    name = "bad_words_ids"

    def start(self, context: Context) -> Matching | None:
        """Return the words and the prompt's last tokens; None if it is off.

        Raises:
            OptionError: if a token is outside the vocabulary.
        """
        ends = {(token,) for token in context.eos_token_ids}
        words = {word: FORBIDDEN for word in map(tuple, context.config.bad_words_ids or ()) if word not in ends}
        refuse_unknown(self.name, words, context)
        return matching(words.items(), context.prompt) if words else None

    def apply(self, states: Sequence[Matching], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with completions of the words forbidden in place. scores: [rows, vocab]"""
        forbid([s.table.single_ids for s in states], scores)
        found = [s.table.completions(s.newest) for s in states]
        return forbid([np.fromiter(row, dtype=np.int64, count=len(row)) for row in found], scores)


class SuppressTokens(Fixed[Ids]):
    """Forbid `suppress_tokens` at every step. Off at None and empty.

    Worked example: scores (1, 2, 3) with suppress_tokens=[1] become (1, -inf, 3).
    """

    name = "suppress_tokens"

    def start(self, context: Context) -> Ids | None:
        """Return the tokens inside the vocabulary; None if this leaves an empty list."""
        tokens = ids(context.config.suppress_tokens, context.info.vocab_size)
        return tokens if len(tokens) else None

    def apply(self, states: Sequence[Ids], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with the tokens forbidden in place. scores: [rows, vocab]"""
        return forbid(states, scores)


class BeginSuppressTokens(Counting):
    """Forbid `begin_suppress_tokens` as the first output token, or the first after a forced BOS.

    Off at None and empty.

    Worked example: scores (1, 2, 3) with begin_suppress_tokens=[1] become (1, -inf, 3), once.
    """

    name = "begin_suppress_tokens"

    def start(self, context: Context) -> Countdown | None:
        """Return the tokens inside the vocabulary; None if this leaves an empty list."""
        tokens = ids(context.config.begin_suppress_tokens, context.info.vocab_size)
        forced = context.config.forced_bos_token_id is not None and len(context.prompt) == 1
        return Countdown(int(forced), tokens) if len(tokens) else None

    def apply(self, states: Sequence[Countdown], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, with the tokens forbidden in place in rows at their begin. scores: [rows, vocab]"""
        return forbid([s.tokens if s.remaining == 0 else NO_IDS for s in states], scores)


class _Forced(Counting):
    """Allow only the state's tokens, with score 0, at the step with countdown 0."""

    def apply(self, states: Sequence[Countdown], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores; rows with countdown 0 allow only the forced tokens, in place. scores: [rows, vocab]"""
        rows = [row for row, state in enumerate(states) if state.remaining == 0]
        if rows:
            scores[torch.tensor(rows, device=scores.device)] = FORBIDDEN
            cells = cells_of([s.tokens if s.remaining == 0 else NO_IDS for s in states], scores)
            scores[cells.rows, cells.tokens] = 0.0
        return scores


class ForcedBos(_Forced):
    """Force `forced_bos_token_id` as the second token of the whole sequence.

    It has an effect only after a prompt of one token. Off at None.

    Worked example: scores (1, 2, 3) with forced_bos_token_id=0 after a prompt of one token become (0, -inf, -inf).
    """

    name = "forced_bos_token_id"

    def start(self, context: Context) -> Countdown | None:
        """Return the token; None if it is off or the prompt is longer.

        Raises:
            OptionError: if the token is outside the vocabulary.
        """
        if context.config.forced_bos_token_id is None or len(context.prompt) != 1:
            return None
        return Countdown(0, _forced_ids(self.name, context.config.forced_bos_token_id, context))


class ForcedEos(_Forced):
    """Force one of the `forced_eos_token_id` ids as the last token within `max_new_tokens`. Off at None.

    Worked example: with max_new_tokens=2 and forced_eos_token_id=0, scores (1, 2, 3) are unchanged at the first step
    and become (0, -inf, -inf) at the second.
    """

    name = "forced_eos_token_id"

    def start(self, context: Context) -> Countdown | None:
        """Return the tokens and the number of steps before the last; None if it is off.

        Raises:
            OptionError: if a token is outside the vocabulary.
        """
        given = context.config.forced_eos_token_id
        if given is None:
            return None
        return Countdown(context.max_new_tokens - 1, _forced_ids(self.name, given, context))


def _forced_ids(option: str, given: int | Sequence[int], context: Context) -> Ids:
    vocab_size = context.info.vocab_size
    tokens = ids(given, vocab_size)
    asked = {given} if isinstance(given, int) else set(given)
    if not len(tokens) or len(tokens) < len(asked):
        raise OptionError(option, given, f"must name token ids in [0, {vocab_size})", "check the tokenizer")
    return tokens

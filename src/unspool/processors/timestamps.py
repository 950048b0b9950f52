"""Whisper's timestamp rules: which timestamp tokens can follow, and when a timestamp must.

Owns: the rules. Does not know: seconds, and the audio.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from unspool.processors.rows import FORBIDDEN
from unspool.protocols import Context, Processor, RowKey


class TimestampState(NamedTuple):
    """The timestamps of an output. Token ids from `Timestamps.begin` on are timestamps.

    length: its tokens, counted up to 2. newest, before: is its newest token, or the token before, a timestamp? `before`
    is True without such a token. last: its last timestamp; None without one. eos: the token that ends it.
    """

    eos: int
    length: int = 0
    newest: bool = False
    before: bool = True
    last: int | None = None


class Timestamps(Processor):
    """Forbid tokens that break the order of timestamps: an output is a list of <start> text <end> segments.

    - The first token is a timestamp, at most `max_initial`.
    - Timestamps come in pairs, except before the end, and never decrease.
    - If all timestamps together are more probable than every text token, the next token is a timestamp.

    Worked example with timestamps from 10 on: after 12, 4, 5, 15 the next token is a timestamp of at least 15, or the
    end; after 12, 4, 5, 15, 15 it is a text token.

    Args:
        no_timestamps: the token before the first timestamp. It is always forbidden.
        max_initial: the greatest first timestamp, counted from 0; None for no limit.
        by_sum: False to leave out the last rule.

    Source: Radford et al. 2022, Robust Speech Recognition via Large-Scale Weak Supervision, section 3.8, and
    transformers' WhisperTimeStampLogitsProcessor.
    """

    name = "timestamps"

    def __init__(self, no_timestamps: int, max_initial: int | None = None, *, by_sum: bool = True) -> None:
        self.begin, self._max_initial, self._by_sum = no_timestamps + 1, max_initial, by_sum

    def start(self, context: Context) -> TimestampState:
        """Return the state before the first token."""
        ends = (*context.eos_token_ids, context.info.bos_token_id or 0)
        return TimestampState(eos=ends[0])

    def advance(self, state: TimestampState, token: int) -> TimestampState:
        """Return the state after one more token."""
        is_timestamp = token >= self.begin
        return state._replace(
            length=min(2, state.length + 1),
            newest=is_timestamp,
            before=state.newest if state.length else True,
            last=token if is_timestamp else state.last,
        )

    def fork(self, state: TimestampState) -> TimestampState:
        """Return the state: it is immutable."""
        return state

    def apply(self, states: Sequence[TimestampState], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores with the tokens forbidden in place. scores: [rows, vocab]"""
        begin, vocab_size = self.begin, scores.shape[1]
        bounds = torch.tensor([self._bounds(state, vocab_size) for state in states], device=scores.device)
        text_from, lowest, highest = bounds[:, :, None].unbind(1)
        tokens = torch.arange(vocab_size, device=scores.device)
        is_timestamp = tokens >= begin
        forbidden = torch.where(is_timestamp, (tokens < lowest) | (tokens > highest), tokens < text_from)
        forbidden[:, begin - 1] = True
        scores.masked_fill_(forbidden, FORBIDDEN)
        if self._by_sum and begin < vocab_size:
            sum_of_timestamps = scores[:, begin:].logsumexp(1)
            must = sum_of_timestamps > scores[:, :begin].amax(1)
            scores[:, :begin].masked_fill_(must[:, None], FORBIDDEN)
        return scores

    def _bounds(self, state: TimestampState, vocab_size: int) -> tuple[int, int, int]:
        """Return the first allowed text token, and the first and the last allowed timestamp."""
        if not state.length:
            return self.begin, self.begin, vocab_size if self._max_initial is None else self.begin + self._max_initial
        if state.newest and state.before:
            return 0, vocab_size, vocab_size
        if state.last is None:
            return 0, self.begin, vocab_size
        return (state.eos, state.last, vocab_size) if state.newest else (0, state.last + 1, vocab_size)

"""The mask of structured output (guided decoding): forbids tokens that leave the formal language of the output.

Owns: the option-independent processor `grammar`. Does not know: how a grammar is compiled (unspool.grammars).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from unspool.kernels.masks import mask_scores, unpacked
from unspool.protocols import Context, Processor, RowKey

if TYPE_CHECKING:
    from unspool.grammars.state import GrammarState


class Grammar(Processor):
    """Structured output: forbid the tokens after which no continuation is in the language of the request's grammar.

    Off without one of the options `json_schema`, `json_object`, `regex`, `choice` and `grammar`. End-of-sequence tokens
    are allowed if and only if the text so far is complete.

    Worked example: with choice=["ab", "b"] and the tokens a, b, ab, EOS, the first step allows a, b and ab. After a,
    only b is allowed. After ab, only EOS is allowed.
    """

    name = "grammar"

    def start(self, context: Context) -> GrammarState | None:
        """Return the state before the first token; None if it is off.

        Raises:
            OptionError: if the request lacks an end-of-sequence token to end a complete text.
        """
        return None if context.grammar is None else context.grammar.start(context)

    def advance(self, state: GrammarState, token: int) -> GrammarState:
        """Return the state, advanced in place by one more token.

        Raises:
            OptionError: if the token takes the grammar to a limit of its size.
        """
        state.advance(token)
        return state

    def fork(self, state: GrammarState) -> GrammarState:
        """Return an independent copy of the state."""
        return state.fork()

    def apply(self, states: Sequence[GrammarState], scores: torch.Tensor, keys: Sequence[RowKey]) -> torch.Tensor:
        """Return the scores, forbidden in place outside the grammars. scores: [rows, vocab]

        Raises:
            OptionError: if a mask takes its grammar to a limit of its size.
        """
        return mask_scores(scores, np.stack([state.mask() for state in states]))

    def support(self, state: GrammarState, vocab_size: int) -> torch.Tensor:
        """Return the tokens that can continue the text. --> [vocab] bool

        Raises:
            OptionError: see `apply`.
        """
        return unpacked(state.mask(), vocab_size)

    def forced_tokens(self, state: GrammarState, most: int) -> tuple[int, ...]:
        """Return the tokens that follow while the grammar allows only one, without end-of-sequence tokens."""
        return state.forced(most)

"""GrammarState: the position of one output in its grammar, and the mask of the tokens that can follow.

Owns: end-of-sequence tokens in masks, and tokens outside the grammar. Does not know: scores, or how grammars are
compiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from unspool.errors import OptionError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from unspool.grammars.compiled import CompiledGrammar

_NO_EXTENSION = "NoExtensionBias"
"""llguidance's error for a text that no token can continue; all its other errors are limits of size."""


def is_dead_end(matcher: LLMatcher) -> bool:
    """Return True if the matcher's error is a text that no token can continue."""
    return bool(matcher.get_error().startswith(_NO_EXTENSION))


class GrammarState:
    """The state of one output; `advance` changes it in place, and a fork is independent.

    phase: "opening" before a forced special token, "open" inside the text, "ended" after an end-of-sequence token,
    "left" after a token outside the grammar. Only a draft that will be rejected can leave the grammar, so its rows are
    not masked.

    Args:
        grammar: the compiled grammar.
        matcher: of llguidance, at the start of the text; owned by this state.
        eos: the request's end-of-sequence tokens.
        opening: a special token that the request forces before the text; None for none.
    """

    __slots__ = ("_matcher", "_words", "eos", "grammar", "opening", "phase")

    def __init__(
        self, grammar: CompiledGrammar, matcher: LLMatcher, eos: tuple[int, ...], opening: int | None = None
    ) -> None:
        self.grammar, self.eos, self.opening = grammar, eos, opening
        self.phase: Literal["opening", "open", "ended", "left"] = "open" if opening is None else "opening"
        self._matcher = matcher
        self._words: NDArray[np.int32] | None = None

    def fork(self) -> GrammarState:
        """Return an independent copy."""
        twin = GrammarState(self.grammar, self._matcher.deep_copy(), self.eos, self.opening)
        twin.phase, twin._words = self.phase, self._words
        return twin

    @property
    def is_complete(self) -> bool:
        """True if the text so far is in the language."""
        return self.phase == "ended" or (self.phase == "open" and self._matcher.is_accepting())

    def advance(self, token: int) -> None:
        """Append one token.

        Raises:
            OptionError: if the token takes the grammar to a limit of its size.
        """
        if self.phase == "opening" and token == self.opening:
            self.phase = "open"
        elif self.phase in ("opening", "open"):
            self.phase = self._phase_after(token)
        self._words = None

    def _phase_after(self, token: int) -> Literal["open", "ended", "left"]:
        if token in self.eos:
            return "ended" if self._matcher.is_accepting() else "left"
        if self._allows(token) and self._matcher.consume_token(token):
            return "open"
        if self._matcher.is_error():
            raise self.grammar.limit_error(self._matcher)
        return "left"

    def _allows(self, token: int) -> bool:
        """Return True if the token can follow. A mask of this place, if it was computed, has the answer already."""
        if token >= self.grammar.vocab_size:
            return False
        if self._words is not None:
            return bool(int(self._words[token >> 5]) >> (token & 31) & 1)
        return self._matcher.validate_tokens([token]) == 1

    def forced(self, most: int) -> tuple[int, ...]:
        """Return at most `most` tokens that follow while only one is allowed, without an end-of-sequence token."""
        tokens: list[int] = []
        state = self
        try:
            while len(tokens) < most and (token := state._only_token()) is not None and token not in self.eos:
                state = self.fork() if state is self else state
                state.advance(token)
                tokens.append(token)
        except OptionError:
            return tuple(tokens)  # the output can end before the limit; if it does not, its own mask raises
        return tuple(tokens)

    def _only_token(self) -> int | None:
        """Return the token that is allowed alone; None if there are several, or none."""
        words = self.mask()
        used = np.flatnonzero(words)
        if len(used) != 1:
            return None
        bits = int(words[used[0]]) & 0xFFFFFFFF
        return int(used[0]) * 32 + bits.bit_length() - 1 if bits.bit_count() == 1 else None

    def mask(self) -> NDArray[np.int32]:
        """Return one bit per token, 1 if it is allowed. Do not modify the array. --> [vocab / 32, rounded up]

        Raises:
            OptionError: if the mask takes the grammar to a limit of its size.
        """
        if self._words is None:
            self._words = self._computed()
        return self._words

    def _computed(self) -> NDArray[np.int32]:
        if self.phase == "opening":
            assert self.opening is not None, "the phase is over without a token to force"
            return self.grammar.only((self.opening,))
        if self.phase == "left":
            return self.grammar.everything
        if self.phase == "ended":
            return self.grammar.only(self.eos)
        words = np.empty_like(self.grammar.everything)
        is_complete = self._matcher.is_accepting()
        self._matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
        if self._matcher.is_error():
            if not is_dead_end(self._matcher):
                raise self.grammar.limit_error(self._matcher)
            words[:] = 0
        # The tokenizer's own end-of-sequence tokens can differ from the request's.
        words &= ~self.grammar.only((*self.grammar.tokenizer_eos, *self.eos))
        return words | self.grammar.only(self.eos) if is_complete else words

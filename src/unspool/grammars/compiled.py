"""Compiled grammars: from an option's value to the start state of an output, with an LRU cache per tokenizer.

Owns: the cache, llguidance's limits and its errors. Does not know: logits, requests, or how values are parsed.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from unspool.errors import OptionError
from unspool.grammars.parsed import Parsed, parse_text
from unspool.grammars.source import grammar_text, refusal
from unspool.grammars.state import GrammarState, is_dead_end
from unspool.grammars.vocabulary import Vocabulary, vocabulary_of
from unspool.tuning import COMPILED_GRAMMARS

if TYPE_CHECKING:
    from unspool.protocols import Context
    from unspool.types import Output

_LIMITS: Final = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)
"""llguidance's limits on compilation, on each mask, and on the memory of a grammar (1 to 2 kB per lexer state)."""

_LOCK: Final = threading.Lock()


class CompiledGrammar:
    """A grammar compiled for one tokenizer; shared by all requests with the same grammar, and never changed.

    Args:
        option, value: the option that gave the grammar, for errors.
        matcher: of llguidance, at the start of a text.
        vocabulary: of the tokenizer.

    Attributes:
        vocab_size: number of token ids in a mask.
        everything: the mask that allows all tokens.
        tokenizer_eos: the tokenizer's own end-of-sequence tokens.
    """

    def __init__(self, option: str, value: Any, matcher: LLMatcher, vocabulary: Vocabulary) -> None:
        self.option, self.value = option, value
        self._matcher, self._vocabulary = matcher, vocabulary
        tokens = vocabulary.tokens
        self.vocab_size = tokens.vocab_size
        self.tokenizer_eos = tuple(tokens.eos_tokens)
        self.everything: NDArray[np.int32] = np.full((tokens.vocab_size + 31) // 32, -1, dtype=np.int32)
        self._only: dict[tuple[int, ...], NDArray[np.int32]] = {}

    def start(self, context: Context) -> GrammarState:
        """Return the state before the first token of a request's output.

        Raises:
            OptionError: if the request lacks an end-of-sequence token.
        """
        if not context.eos_token_ids:
            hint = "set `eos_token_id`, and leave `ignore_eos` out"
            raise OptionError(self.option, self.value, "needs an end-of-sequence token to end a complete text", hint)
        forced = context.config.forced_bos_token_id if len(context.prompt) == 1 else None
        opening = forced if forced is not None and self._vocabulary.tokens.is_special_token(forced) else None
        return GrammarState(self, self._matcher.deep_copy(), context.eos_token_ids, opening)

    def accepts(self, tokens: tuple[int, ...]) -> bool:
        """Return True if the tokens, without an end-of-sequence token, spell a text of the language.

        Special tokens before the text do not count.
        """
        matcher, ll = self._matcher.deep_copy(), self._vocabulary.tokens
        begin = next((place for place, token in enumerate(tokens) if not ll.is_special_token(token)), len(tokens))
        return matcher.consume_tokens(list(tokens[begin:])) and matcher.is_accepting()

    def accepts_text(self, text: str) -> bool:
        """Return True if the text is in the language."""
        return self.accepts(tuple(self._vocabulary.tokens.greedy_tokenize(text)))

    def parse(self, output: Output, text: str) -> Parsed:
        """Return the value of an output, or the reason for a missing value. text: of the output"""
        if output.finish_reason == "stop":  # the tokens of the stop string do not belong to the text
            is_complete = self.accepts_text(text)
        else:
            is_complete = self.accepts(output.token_ids[:-1] if output.finish_reason == "eos" else output.token_ids)
        if not is_complete:
            return Parsed(None, f"the text is not complete: finish_reason is {output.finish_reason!r}")
        return parse_text(self.option, self.value, text)

    def only(self, tokens: tuple[int, ...]) -> NDArray[np.int32]:
        """Return the mask that allows these tokens only. Do not modify the array."""
        known = self._only.get(tokens)
        if known is None:
            bits = np.zeros(32 * len(self.everything), dtype=np.uint8)
            bits[list(tokens)] = 1
            known = self._only[tokens] = np.packbits(bits, bitorder="little").view(np.int32)
        return known

    def limit_error(self, matcher: LLMatcher) -> OptionError:
        """Return the error of an output that took its grammar to a limit; later requests compile the grammar anew."""
        with _LOCK:
            self._vocabulary.compiled.pop((self.option, self.value), None)
        return refusal(self.option, self.value, matcher.get_error())


def compile_grammar(option: str, value: Any, tokenizer: Any, vocab_size: int) -> CompiledGrammar:
    """Return the compiled grammar of an option. It is compiled once per tokenizer, and the most recent ones are kept.

    Args:
        option: one of `unspool.options.grammar_kinds.GRAMMAR_OPTIONS`.
        value: of the option, normalized.
        tokenizer: of the model; None without one.
        vocab_size: number of token ids of the model.

    Raises:
        OptionError: if the tokenizer lacks a byte form, or if the grammar is malformed, too large, empty, or has a part
            that cannot be enforced.
    """
    vocabulary = vocabulary_of(tokenizer, vocab_size, option=option, given=value)
    key = (option, value)
    with _LOCK:
        known = vocabulary.compiled.get(key)
        if known is not None:
            vocabulary.compiled.move_to_end(key)
            return known
    known = CompiledGrammar(option, value, _compiled(option, value, vocabulary.tokens), vocabulary)
    with _LOCK:
        vocabulary.compiled[key] = known
        while len(vocabulary.compiled) > COMPILED_GRAMMARS:
            vocabulary.compiled.popitem(last=False)
    return known


def _compiled(option: str, value: Any, tokens: LLTokenizer) -> LLMatcher:
    """Return llguidance's matcher at the start of a text.

    Raises:
        OptionError: see `compile_grammar`.
    """
    matcher = LLMatcher(tokens, grammar_text(option, value), log_level=0, limits=_LIMITS)
    if matcher.is_error():
        raise refusal(option, value, matcher.get_error())
    first = matcher.deep_copy()
    first.compute_bitmask()
    if not first.is_error():
        return matcher
    if is_dead_end(first):
        raise OptionError(option, value, "must match at least one text", "no text meets all of its parts: relax it")
    raise refusal(option, value, first.get_error())

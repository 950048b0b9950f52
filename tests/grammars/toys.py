"""Toy vocabularies with a byte form, and brute force over the token sequences of a language."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unspool.config import GenerationConfig, resolve
from unspool.engine import Request
from unspool.grammars import CompiledGrammar, compile_grammar
from unspool.options.grammar_kinds import grammar_option
from unspool.strategies import STRATEGIES

END = "<end>"
LETTERS = ("a", "b", "c", "d", "ab", "bc", "abc", "aa", "-", END)
"""A vocabulary in which a text has several tokenizations; the last token ends a text."""


@cache
def tokenizer_of(tokens: Sequence[str] = LETTERS) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with exactly these tokens; END is a special token."""
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def compiled(tokenizer: Any = None, vocab_size: int = 0, **option: Any) -> CompiledGrammar:
    """Return the compiled grammar of one option, for LETTERS by default."""
    config = GenerationConfig(**option)
    name = grammar_option(config)
    assert name is not None
    return compile_grammar(name, getattr(config, name), tokenizer or tokenizer_of(), vocab_size)


def request(prompt: Sequence[int], *, seed: int = 0, tokenizer: Any = None, **options: Any) -> Request:
    """Build a request as the native API would, with its grammar compiled."""
    names = ("assistant", "negative_prompt", "trace", "tentative")
    own = {name: options.pop(name) for name in names if name in options}
    config = resolve(options, None, GenerationConfig(), assistant="assistant" in own)
    name = grammar_option(config)
    grammar = None if name is None else compile_grammar(name, getattr(config, name), tokenizer or tokenizer_of(), 0)
    strategy = STRATEGIES[config.strategy or "greedy"]
    return Request(prompt=tuple(prompt), config=config, seed=seed, strategy=strategy, grammar=grammar, **own)


def texts_of(pattern: str, alphabet: str, longest: int) -> list[str]:
    """Return every text of the language with at most `longest` characters, by trying all texts."""
    regex = re.compile(pattern)
    tried = ("".join(each) for size in range(longest + 1) for each in itertools.product(alphabet, repeat=size))
    return [text for text in tried if regex.fullmatch(text)]


def sequences(texts: Sequence[str], tokens: Sequence[str], limit: int) -> Iterator[tuple[int, ...]]:
    """Yield the outputs that the language allows: token ids with END last, or `limit` tokens of a longer text."""
    end, whole = tokens.index(END), set(texts)
    prefixes = {text[:size] for text in texts for size in range(len(text) + 1)}

    def grow(ids: tuple[int, ...], text: str) -> Iterator[tuple[int, ...]]:
        if len(ids) == limit:
            yield ids
            return
        if text in whole:
            yield (*ids, end)
        for index, token in enumerate(tokens):
            if index != end and text + token in prefixes:
                yield from grow((*ids, index), text + token)

    return grow((), "")


def probability_of(
    output: Sequence[int],
    allowed: Callable[[tuple[int, ...]], Sequence[int]],
    weights: Callable[[tuple[int, ...]], Sequence[float]],
) -> float:
    """Return the probability that sampling writes the output, with each step normalized over the allowed tokens."""
    total = 1.0
    for place, token in enumerate(output):
        before = tuple(output[:place])
        row = weights(before)
        total *= row[token] / sum(row[each] for each in allowed(before))
    return total

"""Structured output: grammars compiled for a tokenizer, their states and masks, and the parsed values of outputs."""

from unspool.grammars.compiled import CompiledGrammar, compile_grammar
from unspool.grammars.parsed import Parsed, parse_text

__all__ = ["CompiledGrammar", "Parsed", "compile_grammar", "parse_text"]

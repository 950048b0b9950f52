"""What the library hands back: frozen values that print themselves, and know no model and no engine."""

from unspool.results.generation import Chunk, Completion, Generation, Timing, TopLogprob, Usage
from unspool.results.next_tokens import NextToken, NextTokens
from unspool.results.score import TextScore

__all__ = [
    "Chunk",
    "Completion",
    "Generation",
    "NextToken",
    "NextTokens",
    "TextScore",
    "Timing",
    "TopLogprob",
    "Usage",
]
